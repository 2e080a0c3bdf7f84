//! Ownership of a service's directory of groups. The owner holds a lock on the directory, because
//! the pid in its name may be another process, or no process, in another pid namespace.

use std::{
    fs::{File, TryLockError},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{CgroupError, files};

/// Attempts to make a directory, which may be removed before it is locked.
const TRIES: u32 = 16;
/// Maximum services with the same name and pid, each in its own pid namespace.
const NAMES: u32 = 64;

/// The owner of a directory, as its lock shows.
#[derive(Debug)]
pub(super) enum Owner {
    /// We hold the lock now, for as long as the file is open.
    Us(File),
    /// A running service holds the lock.
    Another,
    /// The directory is gone, or another one has replaced it.
    Gone,
    /// This kernel has no locks there.
    Unknown,
}

/// Locks a directory, without waiting.
pub(super) fn lock(dir: &Path) -> Owner {
    let Ok(file) = File::open(dir) else {
        return Owner::Gone;
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Owner::Another,
        Err(TryLockError::Error(_)) => return Owner::Unknown,
    }
    // RACE: it may have been removed after it was opened and before it was locked.
    let now = std::fs::metadata(dir).map(|now| now.ino());
    let then = file.metadata().map(|then| then.ino());
    match (then, now) {
        (Ok(then), Ok(now)) if then == now => Owner::Us(file),
        _ => Owner::Gone,
    }
}

/// Makes our directory in `base`, and locks it.
pub(super) fn make(
    base: &Path,
    name: &str,
    pid: i32,
) -> Result<(PathBuf, Option<File>), CgroupError> {
    let mut number = 1;
    let mut dir = base.join(folder_name(name, pid, number));
    for _ in 0..TRIES {
        files::make(&dir)?;
        match lock(&dir) {
            Owner::Us(file) => return Ok((dir, Some(file))),
            Owner::Unknown => break,
            Owner::Gone => {}
            // The owner has our name and our pid, in another pid namespace.
            Owner::Another if number < NAMES => {
                number += 1;
                dir = base.join(folder_name(name, pid, number));
            }
            Owner::Another => break,
        }
    }
    Ok((dir, None))
}

fn folder_name(name: &str, pid: i32, number: u32) -> String {
    match number {
        1 => format!("supervise-{name}.{pid}"),
        _ => format!("supervise-{name}.{pid}-{number}"),
    }
}

/// The pid in the name of a directory, if it belongs to the service `name`.
pub(super) fn pid_in(folder: &str, name: &str) -> Option<i32> {
    let rest = folder.strip_prefix("supervise-")?.strip_prefix(name)?;
    let rest = rest.strip_prefix('.')?;
    match rest.split_once('-') {
        None => rest.parse().ok(),
        Some((pid, number)) => {
            let _number: u32 = number.parse().ok()?;
            pid.parse().ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_belongs_to_a_service_by_its_whole_name() {
        assert_eq!(pid_in("supervise-shop.12", "shop"), Some(12));
        assert_eq!(pid_in("supervise-shop.12-2", "shop"), Some(12));
        for other in [
            "supervise-shop.a.12",
            "supervise-shop.1-x.12",
            "supervise-shopping.12",
            "supervise-shop",
        ] {
            assert_eq!(pid_in(other, "shop"), None, "{other}");
        }
        assert_eq!(folder_name("shop", 12, 2), "supervise-shop.12-2");
    }

    #[test]
    fn services_with_the_same_name_and_pid_get_different_directories() {
        // A lock works the same on any directory.
        let base = tempfile::tempdir().unwrap();
        let (first, held) = make(base.path(), "shop", 7).unwrap();
        let (second, _second) = make(base.path(), "shop", 7).unwrap();
        assert_ne!(first, second);
        assert!(matches!(lock(&first), Owner::Another));
        drop(held);
        assert!(matches!(lock(&first), Owner::Us(_)));
        assert!(matches!(lock(&base.path().join("none")), Owner::Gone));
    }
}
