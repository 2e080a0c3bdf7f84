//! Locks on files (flock(2)), whose last holder may have been killed a moment ago.

use std::{
    fs::{File, TryLockError},
    time::Duration,
};

/// How often to try again, with a pause of [`PAUSE`], because a killed holder may not have released
/// its lock yet.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(10);

/// Locks a file. Waits up to half a second for a lock that is about to be released.
///
/// RACE: a holder is killed and started again at once. The kernel may not have closed its files
/// yet, and a process that it had just forked shares the lock until it executes its program.
///
/// # Errors
/// Another process has the lock, or the file system has no locks.
pub fn try_lock(file: &File) -> Result<(), TryLockError> {
    let mut locked = file.try_lock();
    for _ in 0..TRIES {
        if !matches!(locked, Err(TryLockError::WouldBlock)) {
            break;
        }
        std::thread::park_timeout(PAUSE);
        locked = file.try_lock();
    }
    locked
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_lock_that_a_forked_process_still_shares_is_taken_after_a_wait() {
        let home = tempfile::tempdir().unwrap();
        let open = || File::create(home.path().join("lock")).unwrap();
        let first = open();
        first.try_lock().unwrap();
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::from(first.try_clone().unwrap()))
            .spawn()
            .unwrap();
        drop(first);
        let second = open();
        assert!(matches!(second.try_lock(), Err(TryLockError::WouldBlock)));
        // cat exits when its input is closed.
        drop(child.stdin.take());
        try_lock(&second).unwrap();
        assert!(matches!(try_lock(&open()), Err(TryLockError::WouldBlock)));
        child.wait().unwrap();
    }
}
