//! Signals that reach us become bytes in a pipe; thought is elsewhere.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use signal_hook::consts::signal as numbers;

use crate::units::Signal;

/// All that we listen to. SIGCHLD wakes the reaper; the others are the operator's.
const HEARD: [i32; 11] = [
    numbers::SIGCHLD,
    numbers::SIGTERM,
    numbers::SIGINT,
    numbers::SIGHUP,
    numbers::SIGQUIT,
    numbers::SIGUSR1,
    numbers::SIGUSR2,
    numbers::SIGTTIN,
    numbers::SIGTTOU,
    numbers::SIGWINCH,
    Signal::RELOAD.0,
];

/// Lets a write past the limit on file sizes fail (EFBIG) instead of killing us (setrlimit(2),
/// `RLIMIT_FSIZE`). It is reported like a full disk. The command gets the default action back.
#[expect(unsafe_code, reason = "signal(2) has no safe form")]
pub fn fail_at_file_size_limit() {
    // SAFETY: SIG_IGN is not a handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// The receiving end.
#[derive(Debug)]
pub(super) struct Signals {
    pipe: UnixStream,
}

impl Signals {
    /// From now on signals come here.
    pub(super) fn listen() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let write = Arc::new(write);
        for signal in HEARD {
            let pipe = Arc::clone(&write);
            let note = move || {
                // A full pipe holds hundreds of signals that were not looked at: one more says
                // nothing new. write(2) is allowed in a handler (signal-safety(7)).
                let _ = (&*pipe).write(&[u8::try_from(signal).unwrap_or(0)]);
            };
            register(signal, note)?;
        }
        Ok(Self { pipe: read })
    }

    /// Those that have come, in their order.
    pub(super) fn take(&mut self) -> Vec<Signal> {
        let mut bytes = [0; 256];
        let length = self.pipe.read(&mut bytes).unwrap_or(0);
        bytes[..length]
            .iter()
            .map(|&byte| Signal(i32::from(byte)))
            .collect()
    }
}

#[expect(
    unsafe_code,
    reason = "a handler may only do what signal-safety(7) allows"
)]
fn register(signal: i32, note: impl Fn() + Sync + Send + 'static) -> io::Result<()> {
    // SAFETY: the handler does nothing but write(2) to a descriptor that is never closed.
    unsafe { signal_hook::low_level::register(signal, note) }.map(drop)
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
