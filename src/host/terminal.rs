//! The terminal of standard output.
#![expect(
    unsafe_code,
    reason = "the ioctl for the size of a terminal is only in libc"
)]

use std::io;
use std::os::fd::AsRawFd as _;

/// The width in columns. `None`: standard output is not a terminal, or its width is unknown.
pub fn width() -> Option<usize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let fd = io::stdout().as_raw_fd();
    // SAFETY: the kernel writes one winsize, which lives until the call is over.
    let result = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0).then_some(usize::from(size.ws_col))
}
