//! Waits for the supervisor's own children: the keeper, the sweeper, and orphans that we inherited
//! because we are process 1 or because the keeper was killed. Nothing else waits for them.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::keeper::children;

/// A child that was reaped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::host) struct Reaped {
    pub(in crate::host) pid: i32,
    /// The status from wait(2).
    pub(in crate::host) status: i32,
    pub(in crate::host) peak_kib: i64,
}

/// Reaps all children that have ended, and continues those of `ours` that were stopped: a stopped
/// keeper can neither reap nor kill.
#[expect(unsafe_code, reason = "wait4 has no safe form")]
pub(in crate::host) fn reap(ours: &[i32]) -> Vec<Reaped> {
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
                // It is not reaped yet, so its pid is not reused.
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

/// Sends SIGKILL to all our children except this one. False if there are no others.
pub(in crate::host) fn kill_children(except: Option<i32>) -> bool {
    let mut any = false;
    for pid in children() {
        if Some(pid) != except {
            any = true;
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    any
}
