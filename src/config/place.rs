//! What a service is called, and where its socket is. Used by the service and by its clients.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

/// The longest name: with the directory before it, it has to fit into a socket's address.
const NAME_MAX: usize = 64;

/// `sun_path` holds 108 bytes with its NUL (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// Says what is wrong with a name. It becomes a file's and a cgroup's name, so it may not climb.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.len() > NAME_MAX {
        return Err(format!(
            "`{name}` is longer than {NAME_MAX} letters; choose a shorter name"
        ));
    }
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_safe) {
        return Err(format!(
            "`{name}` is no name; write letters, digits, `.`, `_` and `-`, no `.` first"
        ));
    }
    Ok(())
}

/// A name made out of any text.
pub(super) fn name_from(text: &str) -> String {
    let safe: String = text
        .trim_start_matches('.')
        .chars()
        .map(|c| if is_safe(c) { c } else { '-' })
        .take(NAME_MAX)
        .collect();
    if safe.is_empty() {
        "service".to_owned()
    } else {
        safe
    }
}

fn is_safe(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// Where the services of the system are.
const SYSTEM: &str = "/run/supervise";

/// The directories a service's socket may be in. A service takes the first; a client, which may
/// have another environment than its service, looks through all.
pub fn runtime_dirs(
    environ: impl IntoIterator<Item = (OsString, OsString)>,
    uid: u32,
) -> Vec<PathBuf> {
    let environ: BTreeMap<OsString, OsString> = environ.into_iter().collect();
    let absolute = |name: &str| {
        let text = environ.get(&OsString::from(name))?.to_str()?;
        // systemd gives several directories with colons between them (systemd.exec(5)).
        let first = text.split(':').next().unwrap_or_default();
        first.starts_with('/').then(|| PathBuf::from(first))
    };
    // `/dev/shm` exists and is sticky even in a container whose `/tmp` is not.
    let own = ["/tmp", "/dev/shm"].map(|shared| {
        let own = || Path::new(shared).join(format!("supervise-{uid}"));
        (uid != 0).then(own)
    });
    let session = absolute("XDG_RUNTIME_DIR").map(|directory| directory.join("supervise"));
    let given = [absolute("RUNTIME_DIRECTORY"), session];
    let system = Some(PathBuf::from(SYSTEM));
    let all = given.into_iter().chain(own).chain([system]);
    all.flatten().collect()
}

/// The directory for a service's socket: the first of [`runtime_dirs`] that only we can change,
/// with a warning about each one before it.
pub fn runtime_dir(
    environ: impl IntoIterator<Item = (OsString, OsString)>,
    uid: u32,
    unusable: impl Fn(&Path) -> Option<String>,
) -> Result<(PathBuf, Vec<String>), String> {
    first_usable("runtime directory", runtime_dirs(environ, uid), unusable).map_err(|refused| {
        format!(
            "no runtime directory is safe from changes by other users: {refused}. hint: set \
             XDG_RUNTIME_DIR to a directory that only you can write to, or name the socket with \
             --socket"
        )
    })
}

/// The first directory that only we can change, with a warning about each one before it; or why
/// none can be used.
fn first_usable(
    what: &str,
    directories: Vec<PathBuf>,
    unusable: impl Fn(&Path) -> Option<String>,
) -> Result<(PathBuf, Vec<String>), String> {
    let mut refused = Vec::new();
    for directory in directories {
        let Some(why) = unusable(&directory) else {
            let taken = directory.display();
            let warn = |why: String| format!("{what}: {why}; {taken} is used instead");
            let warnings = refused.into_iter().map(warn).collect();
            return Ok((directory, warnings));
        };
        refused.push(why);
    }
    Err(refused.join("; "))
}

/// Where services of the system keep what outlives them.
const SYSTEM_STATE: &str = "/var/lib/supervise";

/// The directories in which services keep what outlives them. A service takes the first that only
/// it can change; a client looks through all (systemd.exec(5), XDG base directory specification).
pub fn state_dirs(
    environ: impl IntoIterator<Item = (OsString, OsString)>,
    uid: u32,
) -> Vec<PathBuf> {
    let environ: BTreeMap<OsString, OsString> = environ.into_iter().collect();
    let absolute = |variable: &str| {
        let text = environ.get(&OsString::from(variable))?.to_str()?;
        let first = text.split(':').next().unwrap_or_default();
        first.starts_with('/').then(|| PathBuf::from(first))
    };
    let given = absolute("XDG_STATE_HOME");
    let home = || Some(absolute("HOME")?.join(".local/state"));
    let own = given.or_else(|| (uid != 0).then(home).flatten());
    let own = own.map(|state| state.join("supervise"));
    let system = Some(PathBuf::from(SYSTEM_STATE));
    let all = [absolute("STATE_DIRECTORY"), own, system];
    all.into_iter().flatten().collect()
}

/// The first of [`state_dirs`] that only we can change, if any, with a warning about each one
/// before it.
pub(super) fn state_dir(
    environ: impl IntoIterator<Item = (OsString, OsString)>,
    uid: u32,
    unusable: impl Fn(&Path) -> Option<String>,
) -> (Option<PathBuf>, Vec<String>) {
    match first_usable("state directory", state_dirs(environ, uid), unusable) {
        Ok((directory, warnings)) => (Some(directory), warnings),
        Err(refused) => {
            let warning = format!(
                "state directory: {refused}; reports and events end with the service. hint: name a \
                 directory with --leaks-directory"
            );
            (None, vec![warning])
        }
    }
}

/// A service's own directory in one of them: services of one name that run in different directories
/// are different services.
pub(super) fn state_name(name: &str, directory: &Path) -> String {
    // FNV-1a: the same for ever, and on every machine.
    let bytes = directory.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    format!("{name}-{hash:08x}")
}

/// A service's socket in one of those directories.
pub fn socket_in(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

/// Says what is wrong with a socket's path.
pub(super) fn check_socket(path: &Path) -> Result<(), String> {
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Err(format!(
            "{} has {length} bytes, and a socket's path has at most {SOCKET_PATH_MAX}",
            path.display()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(environ: &[(&str, &str)], uid: u32) -> Vec<PathBuf> {
        let owned = environ.iter().map(|(k, v)| (k.into(), v.into()));
        runtime_dirs(owned, uid)
    }

    #[test]
    fn the_runtime_directory_is_the_first_that_is_given() {
        let both = [
            ("RUNTIME_DIRECTORY", "/run/a:/run/b"),
            ("XDG_RUNTIME_DIR", "/run/user/7"),
        ];
        let (session, own) = ("/run/user/7/supervise", "/tmp/supervise-7");
        let second = "/dev/shm/supervise-7";
        let expected = ["/run/a", session, own, second, SYSTEM].map(PathBuf::from);
        assert_eq!(dirs(&both, 7), expected);
        assert_eq!(dirs(&[], 0), [PathBuf::from("/run/supervise")]);
        assert_eq!(
            dirs(&[("XDG_RUNTIME_DIR", "here")], 7),
            [own, second, SYSTEM].map(PathBuf::from)
        );
    }

    #[test]
    fn a_directory_that_others_can_change_is_passed_over_and_said() {
        let environ = || [("XDG_RUNTIME_DIR".into(), "/run/user/7".into())];
        let bad = |text: &'static str| {
            move |path: &Path| path.starts_with(text).then(|| format!("{text}: bad"))
        };
        let (directory, said) = runtime_dir(environ(), 0, bad("/run/user")).unwrap();
        assert_eq!(directory, Path::new(SYSTEM));
        let expected = "runtime directory: /run/user: bad; /run/supervise is used instead";
        assert_eq!(said, [expected]);
        let (directory, said) = runtime_dir([], 7, bad("/tmp")).unwrap();
        assert_eq!(directory, Path::new("/dev/shm/supervise-7"));
        assert_eq!(said.len(), 1);
        let error = runtime_dir(environ(), 0, bad("/")).unwrap_err();
        assert!(
            error.contains("--socket") && error.contains("/: bad"),
            "{error}"
        );
    }

    #[test]
    fn the_state_directory_is_the_first_that_only_we_can_change() {
        let all = |environ: &[(&str, &str)], uid| {
            state_dirs(environ.iter().map(|(k, v)| (k.into(), v.into())), uid)
        };
        let environ = [("XDG_STATE_HOME", "/x"), ("HOME", "/home/a")];
        let expected = ["/x/supervise", SYSTEM_STATE].map(PathBuf::from);
        for uid in [0, 7] {
            assert_eq!(all(&environ, uid), expected);
        }
        let home = "/home/a/.local/state/supervise";
        assert_eq!(
            all(&environ[1..], 7),
            [home, SYSTEM_STATE].map(PathBuf::from)
        );
        assert_eq!(all(&environ[1..], 0), [PathBuf::from(SYSTEM_STATE)]);
        let given = [("STATE_DIRECTORY", "/s:/t"), ("XDG_STATE_HOME", "/x")];
        assert_eq!(all(&given, 0)[0], Path::new("/s"));

        let bad = |path: &Path| path.starts_with("/x").then(|| "/x: bad".to_owned());
        let environ = || [("XDG_STATE_HOME".into(), "/x".into())];
        let (taken, said) = state_dir(environ(), 0, bad);
        assert_eq!(taken, Some(SYSTEM_STATE.into()));
        assert!(
            said[0].contains("/x: bad") && said[0].contains(SYSTEM_STATE),
            "{said:?}"
        );
        let (taken, said) = state_dir(environ(), 0, |_| Some("bad".to_owned()));
        assert_eq!((taken, said.len()), (None, 1));
    }

    #[test]
    fn services_of_one_name_in_two_directories_have_two_places() {
        let name = |directory: &str| state_name("shop", Path::new(directory));
        assert_eq!(name("/srv/a"), name("/srv/a"));
        assert_ne!(name("/srv/a"), name("/srv/b"));
        // It must not change: what was kept would be lost.
        assert_eq!(name(""), "shop-811c9dc5");
    }

    #[test]
    fn a_name_cannot_climb() {
        for name in ["shop", "shop_2", "a.b-c"] {
            assert_eq!(check_name(name), Ok(()));
        }
        for name in ["", ".", "..", "a/b", "a b", "ä", &"a".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
            assert_eq!(check_name(&name_from(name)), Ok(()), "{name}");
        }
    }
}
