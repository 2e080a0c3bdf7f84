//! The file by which a gunicorn worker notifies its master that it lives (gunicorn's
//! `workers/workertmp.py`).
//!
//! It is a file without a name, open in the worker and its master. Newer versions of gunicorn (23
//! and 27 were tried) set its times to the monotonic clock; 20.0 and 20.1 flip its mode between 0
//! and 1.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    time::Duration,
};

use crate::{host::memory::procfs::Proc, units::Timestamp};

/// The start of its name, before it was unlinked.
pub const PREFIX: &str = "wgunicorn-";

/// No uptime is longer than this, and every wall clock is later.
const UPTIME_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The file of one worker, held open.
#[derive(Debug)]
pub struct Heartbeat {
    /// Opened with `O_PATH`: its mode may forbid reading it, even to its owner.
    file: File,
}

impl Heartbeat {
    /// Opens the file that the process has open with this inode. `None` if there is none (any
    /// more), or if we may not read it.
    pub fn open(proc: &Proc, pid: i32, inode: u64) -> Option<Self> {
        let files = proc.files(pid, PREFIX).ok()?;
        let (descriptor, _) = files.into_iter().find(|(_, found)| *found == inode)?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(proc.path_of(pid, &format!("fd/{descriptor}")))
            .ok()?;
        // RACE: the descriptor may have become another file meanwhile.
        let is_same = file.metadata().ok()?.ino() == inode;
        is_same.then_some(Self { file })
    }

    /// Whether the worker has notified at least once: its application is loaded, and it serves.
    pub fn has_notified(&self) -> bool {
        let flipped = self
            .file
            .metadata()
            .is_ok_and(|meta| meta.mode() & 0o777 <= 1);
        flipped || self.last().is_some()
    }

    /// The time of its last notification. `None` before the first one, and for a gunicorn that
    /// flips modes.
    pub fn last(&self) -> Option<Timestamp> {
        let meta = self.file.metadata().ok()?;
        let seconds = u64::try_from(meta.mtime()).ok()?;
        let nanos = u64::try_from(meta.mtime_nsec()).ok()?;
        let is_monotonic = seconds < UPTIME_MAX.as_secs();
        is_monotonic.then(|| Timestamp::from_nanos(seconds * 1_000_000_000 + nanos))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{FileTimes, Permissions},
        os::unix::fs::PermissionsExt,
        time::SystemTime,
    };

    use super::*;

    /// A file as gunicorn makes it, and our view of it.
    fn made() -> (File, Heartbeat) {
        let (file, path) = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempfile()
            .unwrap()
            .into_parts();
        path.close().unwrap();
        let us = std::process::id().try_into().unwrap();
        let inode = file.metadata().unwrap().ino();
        let heartbeat = Heartbeat::open(&Proc::default(), us, inode).unwrap();
        (file, heartbeat)
    }

    #[test]
    fn a_worker_that_has_not_notified_has_a_wall_clock_time() {
        let (_file, heartbeat) = made();
        assert!(!heartbeat.has_notified());
        assert_eq!(heartbeat.last(), None);
    }

    #[test]
    fn a_notification_sets_the_time_of_the_monotonic_clock() {
        let (file, heartbeat) = made();
        let beat = SystemTime::UNIX_EPOCH + Duration::from_millis(1_947_610);
        file.set_times(FileTimes::new().set_modified(beat)).unwrap();
        assert!(heartbeat.has_notified());
        let expected = Timestamp::from_nanos(1_947_610_000_000);
        assert_eq!(heartbeat.last(), Some(expected));
    }

    #[test]
    fn an_old_gunicorn_flips_the_mode() {
        for mode in [0, 1] {
            let (file, heartbeat) = made();
            file.set_permissions(Permissions::from_mode(mode)).unwrap();
            assert!(heartbeat.has_notified());
            assert_eq!(heartbeat.last(), None);
        }
    }

    #[test]
    fn a_file_with_another_inode_is_not_opened() {
        let (file, _heartbeat) = made();
        let other = file.metadata().unwrap().ino() + 1;
        let us = std::process::id().try_into().unwrap();
        assert!(Heartbeat::open(&Proc::default(), us, other).is_none());
    }
}
