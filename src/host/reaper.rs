//! The only one that waits for the supervisor's own children: the keeper, and strangers that were
//! left to us because we are process 1 or because the keeper was killed.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::keeper::children;

/// A child that was buried.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Reaped {
    pub(super) pid: i32,
    /// As wait(2) gives it.
    pub(super) status: i32,
    pub(super) peak_kib: i64,
}

/// Reaps all children that have ended, and continues those of `ours` that were stopped: a stopped
/// keeper can neither reap nor kill.
#[expect(unsafe_code, reason = "wait4 has no safe form")]
pub(super) fn reap(ours: &[i32]) -> Vec<Reaped> {
    let mut reaped = Vec::new();
    loop {
        let mut status = 0;
        // SAFETY: rusage is plain numbers.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        let how = libc::WNOHANG | libc::WUNTRACED;
        // SAFETY: both pointers are to our own variables.
        let pid = unsafe { libc::wait4(-1, &raw mut status, how, &raw mut usage) };
        if pid <= 0 {
            return reaped;
        }
        if libc::WIFSTOPPED(status) {
            if ours.contains(&pid) {
                // Not reaped yet, so its number is its own.
                let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
            }
            continue;
        }
        reaped.push(Reaped {
            pid,
            status,
            peak_kib: usage.ru_maxrss,
        });
    }
}

/// SIGKILL for all our children but this one. False if there is none.
pub(super) fn kill_children(except: Option<i32>) -> bool {
    let mut any = false;
    for pid in children() {
        if Some(pid) != except {
            any = true;
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    any
}
