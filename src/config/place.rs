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
    // The second is there, and sticky, also in a container whose /tmp everybody may change.
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

/// The directory for a service's socket: the first that only we can change. With it, what is wrong
/// with those that the environment names.
pub fn runtime_dir(
    environ: impl IntoIterator<Item = (OsString, OsString)>,
    uid: u32,
    unusable: impl Fn(&Path) -> Option<String>,
) -> Result<(PathBuf, Vec<String>), String> {
    let mut passed_over = Vec::new();
    for directory in runtime_dirs(environ, uid) {
        match unusable(&directory) {
            Some(why) => passed_over.push(why),
            None => {
                let said = passed_over.into_iter();
                let said = said.map(|why| {
                    let taken = directory.display();
                    format!("runtime directory: {why}; {taken} is used instead")
                });
                return Ok((directory.clone(), said.collect()));
            }
        }
    }
    Err(format!(
        "no runtime directory is for us alone: {}. hint: set XDG_RUNTIME_DIR to a directory that \
         only you can write to, or name the socket with --socket",
        passed_over.join("; ")
    ))
}

/// Where a service keeps what outlives it; `None` where there is no home for it.
pub(super) fn state_dir(
    environ: impl IntoIterator<Item = (OsString, OsString)>,
    uid: u32,
    name: &str,
) -> Option<PathBuf> {
    let environ: BTreeMap<OsString, OsString> = environ.into_iter().collect();
    let absolute = |variable: &str| {
        let text = environ.get(&OsString::from(variable))?.to_str()?;
        let first = text.split(':').next().unwrap_or_default();
        first.starts_with('/').then(|| PathBuf::from(first))
    };
    // systemd.exec(5) and the XDG base directory specification.
    let own = || absolute("STATE_DIRECTORY");
    let home = || {
        let state = absolute("XDG_STATE_HOME");
        let state = state.or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
        state.map(|state| state.join("supervise"))
    };
    let base = if uid == 0 {
        own().or_else(|| Some(PathBuf::from("/var/lib/supervise")))
    } else {
        own().or_else(home)
    };
    base.map(|base| base.join("reports").join(name))
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
