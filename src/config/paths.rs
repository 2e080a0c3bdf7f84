//! The name of a service, and the paths of its socket and its state. Services and clients use the
//! same rules.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Maximum length of a name: with its directory, it has to fit into the address of a socket.
const NAME_MAX: usize = 64;

/// `sun_path` has 108 bytes, including the NUL (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// Checks a name. It becomes the name of a file and of a cgroup, so it must not be a path.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.len() > NAME_MAX {
        return Err(format!(
            "`{name}` is longer than {NAME_MAX} characters; choose a shorter name"
        ));
    }
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_safe) {
        return Err(format!(
            "`{name}` is not a valid name; use letters, digits, `.`, `_` and `-`, and no `.` at \
             the start"
        ));
    }
    Ok(())
}

/// Makes a valid name of any text.
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

/// The runtime directory of system services.
const SYSTEM: &str = "/run/supervise";

/// The directories in which the socket of a service may be. A service uses the first one. A client
/// searches all of them, because its environment may differ from that of the service.
pub fn runtime_dirs(
    environ: impl IntoIterator<Item = (OsString, OsString)>,
    uid: u32,
) -> Vec<PathBuf> {
    let environ: BTreeMap<OsString, OsString> = environ.into_iter().collect();
    let absolute = |name: &str| {
        let text = environ.get(&OsString::from(name))?.to_str()?;
        // systemd separates several directories by colons (systemd.exec(5)).
        let first = text.split(':').next().unwrap_or_default();
        first.starts_with('/').then(|| PathBuf::from(first))
    };
    // `/dev/shm` exists and has the sticky bit even in a container whose `/tmp` has not.
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

/// The directory for the socket of a service: the first of [`runtime_dirs`] that no other user can
/// change. Also returns a warning for each directory before it.
pub fn runtime_dir(
    environ: impl IntoIterator<Item = (OsString, OsString)>,
    uid: u32,
    unusable: impl Fn(&Path) -> Option<String>,
) -> Result<(PathBuf, Vec<String>), String> {
    first_usable("runtime directory", runtime_dirs(environ, uid), unusable).map_err(|refused| {
        format!(
            "other users can change each runtime directory: {refused}. hint: set XDG_RUNTIME_DIR \
             to a directory that only you can write to, or set the socket with --socket"
        )
    })
}

/// The first directory that no other user can change, with a warning for each one before it. The
/// error says why none can be used.
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

/// The state directory of system services.
const SYSTEM_STATE: &str = "/var/lib/supervise";

/// The directories in which services may keep reports and events. A service uses the first one that
/// no other user can change. A client searches all of them (systemd.exec(5), XDG base directory
/// specification).
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

/// The first of [`state_dirs`] that no other user can change, if there is one, with a warning for
/// each directory before it.
pub(super) fn state_dir(
    environ: impl IntoIterator<Item = (OsString, OsString)>,
    uid: u32,
    unusable: impl Fn(&Path) -> Option<String>,
) -> (Option<PathBuf>, Vec<String>) {
    match first_usable("state directory", state_dirs(environ, uid), unusable) {
        Ok((directory, warnings)) => (Some(directory), warnings),
        Err(refused) => {
            let warning = format!(
                "state directory: {refused}; reports and events are lost when the service ends. \
                 hint: set a directory with --leaks-directory"
            );
            (None, vec![warning])
        }
    }
}

/// The name of a service's own directory in a state directory. Services with the same name that run
/// in different directories are different services.
pub(super) fn state_name(name: &str, directory: &Path) -> String {
    // FNV-1a gives the same hash on all machines and in all versions.
    let bytes = directory.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    format!("{name}-{hash:08x}")
}

/// The socket of a service in a runtime directory.
pub fn socket_in(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

/// Checks the path of a socket.
pub(super) fn check_socket(path: &Path) -> Result<(), String> {
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Err(format!(
            "{} has {length} bytes; the path of a socket has at most {SOCKET_PATH_MAX}",
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
    fn runtime_directories_of_the_environment_come_first() {
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
    fn a_directory_that_another_user_can_change_is_skipped_with_a_warning() {
        let environ = || [("XDG_RUNTIME_DIR".into(), "/run/user/7".into())];
        let bad = |text: &'static str| {
            move |path: &Path| path.starts_with(text).then(|| format!("{text}: bad"))
        };
        let (directory, warnings) = runtime_dir(environ(), 0, bad("/run/user")).unwrap();
        assert_eq!(directory, Path::new(SYSTEM));
        let expected = "runtime directory: /run/user: bad; /run/supervise is used instead";
        assert_eq!(warnings, [expected]);
        let (directory, warnings) = runtime_dir([], 7, bad("/tmp")).unwrap();
        assert_eq!(directory, Path::new("/dev/shm/supervise-7"));
        assert_eq!(warnings.len(), 1);
        let error = runtime_dir(environ(), 0, bad("/")).unwrap_err();
        assert!(
            error.contains("--socket") && error.contains("/: bad"),
            "{error}"
        );
    }

    #[test]
    fn the_state_directory_is_the_first_that_no_other_user_can_change() {
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
        let (taken, warnings) = state_dir(environ(), 0, bad);
        assert_eq!(taken, Some(SYSTEM_STATE.into()));
        assert!(
            warnings[0].contains("/x: bad") && warnings[0].contains(SYSTEM_STATE),
            "{warnings:?}"
        );
        let (taken, warnings) = state_dir(environ(), 0, |_| Some("bad".to_owned()));
        assert_eq!((taken, warnings.len()), (None, 1));
    }

    #[test]
    fn services_with_one_name_in_two_directories_have_different_state_directories() {
        let name = |directory: &str| state_name("shop", Path::new(directory));
        assert_eq!(name("/srv/a"), name("/srv/a"));
        assert_ne!(name("/srv/a"), name("/srv/b"));
        // The hash must not change in later versions: they would not find the kept reports.
        assert_eq!(name(""), "shop-811c9dc5");
    }

    #[test]
    fn a_name_is_not_a_path() {
        for name in ["shop", "shop_2", "a.b-c"] {
            assert_eq!(check_name(name), Ok(()));
        }
        for name in ["", ".", "..", "a/b", "a b", "ä", &"a".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
            assert_eq!(check_name(&name_from(name)), Ok(()), "{name}");
        }
    }
}
