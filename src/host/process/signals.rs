//! Signals to the supervisor, as bytes in a pipe: the handlers do nothing else.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use signal_hook::consts::signal as numbers;

use crate::{host::memory::procfs::Proc, units::Signal};

/// All handled signals. SIGCHLD wakes the reaper; the others come from the operator.
const HANDLED: [i32; 11] = [
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

/// Makes a write beyond the limit on file sizes fail (EFBIG) instead of killing us (setrlimit(2),
/// `RLIMIT_FSIZE`). The failure is reported like a full disk. The command gets the default action
/// back.
#[expect(unsafe_code, reason = "signal(2) has no safe form")]
pub fn fail_at_file_size_limit() {
    // SAFETY: SIG_IGN is not a handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Whether a process would end at this signal without noticing it: it neither catches, nor ignores,
/// nor blocks it (`SigCgt`, `SigIgn`, `SigBlk` of proc_pid_status(5)). A process that cannot be
/// read has ended, and would not.
pub(in crate::host) fn would_end(proc: &Proc, pid: i32, signal: Signal) -> bool {
    let Ok(status) = proc.text(&format!("{pid}/status")) else {
        return false;
    };
    let is_in = |name: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask >> (signal.0 - 1) & 1 == 1)
    };
    !["SigCgt:", "SigIgn:", "SigBlk:"].into_iter().any(is_in)
}

/// The receiving end of the pipe.
#[derive(Debug)]
pub(in crate::host) struct Signals {
    pipe: UnixStream,
}

impl Signals {
    /// Installs the handlers.
    pub(in crate::host) fn listen() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let write = Arc::new(write);
        for signal in HANDLED {
            let pipe = Arc::clone(&write);
            let note = move || {
                // If the pipe is full, hundreds of signals are pending, and one more adds nothing.
                // write(2) is allowed in a handler (signal-safety(7)).
                let _ = (&*pipe).write(&[u8::try_from(signal).unwrap_or(0)]);
            };
            register(signal, note)?;
        }
        Ok(Self { pipe: read })
    }

    /// Takes the signals that have come, in their order.
    pub(in crate::host) fn take(&mut self) -> Vec<Signal> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_would_end_at_a_signal_that_it_neither_catches_nor_ignores_nor_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let proc = Proc::at(dir.path());
        std::fs::create_dir(dir.path().join("7")).unwrap();
        let ends = |blocked, ignored, caught| {
            let text = format!("SigBlk:\t{blocked}\nSigIgn:\t{ignored}\nSigCgt:\t{caught}\n");
            std::fs::write(dir.path().join("7/status"), text).unwrap();
            would_end(&proc, 7, Signal::TERM)
        };
        let (term, others) = ("0000000000004000", "ffffffffffffbfff");
        assert!(ends(others, others, others));
        assert!(!ends(term, others, others));
        assert!(!ends(others, term, others));
        assert!(!ends(others, others, term));
        assert!(!would_end(&proc, 8, Signal::TERM), "it has ended");
    }
}
