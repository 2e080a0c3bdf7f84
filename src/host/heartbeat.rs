//! The file by which a gunicorn worker says that it lives (its `workers/workertmp.py`).
//!
//! A file without a name, open in the worker and its master. Newer gunicorns (23 and 27 were tried)
//! set its times to the monotonic clock, 20.0 and 20.1 flip its mode between 0 and 1.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    time::Duration,
};

use super::procfs::Proc;
use crate::units::Timestamp;

/// How its name began.
pub const PREFIX: &str = "wgunicorn-";

/// No machine was up for so long, and every wall clock is past it.
const UPTIME_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

/// One worker's file, held open.
#[derive(Debug)]
pub struct Heartbeat {
    /// `O_PATH`: its mode may forbid reading it, even to its owner.
    file: File,
}

impl Heartbeat {
    /// Holds the file that the process has open with this inode. `None` if there is none (any
    /// more), or if we may not look.
    pub fn open(proc: &Proc, pid: i32, inode: u64) -> Option<Self> {
        let files = proc.files(pid, PREFIX).ok()?;
        let (descriptor, _) = files.into_iter().find(|(_, found)| *found == inode)?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(proc.of(pid, &format!("fd/{descriptor}")))
            .ok()?;
        // The descriptor may have become another file between the two looks.
        let is_same = file.metadata().ok()?.ino() == inode;
        is_same.then_some(Self { file })
    }

    /// The worker has notified at least once: its application is loaded and it serves.
    pub fn is_beaten(&self) -> bool {
        let flipped = self
            .file
            .metadata()
            .is_ok_and(|meta| meta.mode() & 0o777 <= 1);
        flipped || self.last().is_some()
    }

    /// When it notified last. `None` before the first time, and for a gunicorn that flips modes.
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

    /// What gunicorn makes, and our view of it.
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
        assert!(!heartbeat.is_beaten());
        assert_eq!(heartbeat.last(), None);
    }

    #[test]
    fn a_beat_is_a_time_of_the_monotonic_clock() {
        let (file, heartbeat) = made();
        let beat = SystemTime::UNIX_EPOCH + Duration::from_millis(1_947_610);
        file.set_times(FileTimes::new().set_modified(beat)).unwrap();
        assert!(heartbeat.is_beaten());
        let expected = Timestamp::from_nanos(1_947_610_000_000);
        assert_eq!(heartbeat.last(), Some(expected));
    }

    #[test]
    fn an_old_gunicorn_flips_the_mode() {
        for mode in [0, 1] {
            let (file, heartbeat) = made();
            file.set_permissions(Permissions::from_mode(mode)).unwrap();
            assert!(heartbeat.is_beaten());
            assert_eq!(heartbeat.last(), None);
        }
    }

    #[test]
    fn another_inode_is_no_heartbeat() {
        let (file, _heartbeat) = made();
        let other = file.metadata().unwrap().ino() + 1;
        let us = std::process::id().try_into().unwrap();
        assert!(Heartbeat::open(&Proc::default(), us, other).is_none());
    }
}
