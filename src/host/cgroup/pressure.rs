//! Memory pressure, as the kernel measures it (`psi.rst`, "Monitoring for pressure thresholds").

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

/// Triggers when some process was stalled for 150 ms of 2 s. Without CAP_SYS_RESOURCE only
/// multiples of 2 s are allowed, and the text must end with a zero byte.
const TRIGGER: &[u8] = b"some 150000 2000000\0";

/// Becomes ready with EPOLLPRI, once for each trigger event. Closing it removes the trigger.
#[derive(Debug)]
pub struct Pressure {
    file: File,
}

impl Pressure {
    pub(super) fn watch(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        file.write_all(TRIGGER)?;
        Ok(Self { file })
    }
}

impl AsFd for Pressure {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
