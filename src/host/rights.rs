//! What we may do for ourselves: be the last that the OOM killer takes, be woken first, and raise a
//! priority again that we have lowered.

#![expect(unsafe_code, reason = "sched_setscheduler has no safe form")]

use nix::sys::resource::{Resource, getrlimit};

use super::procfs::Proc;

/// Below this only what is never killed at all comes later.
const LAST: i32 = -999;
const CAP_SYS_NICE: u32 = 23;
/// `20 - nice` is what RLIMIT_NICE counts (getrlimit(2)): this allows nice 0.
const NICE_ZERO: u64 = 20;

/// Makes us the last that the OOM killer takes, where that is allowed. Returns what it was before,
/// which is the command's.
pub fn protect_from_oom(proc: &Proc, own: i32) -> i32 {
    let before = proc
        .text("self/oom_score_adj")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    // Without CAP_SYS_RESOURCE we may not; `doctor` says so.
    let _ = proc.set_oom_score_adj(own, LAST);
    before.unwrap_or(0)
}

/// Lets the watching thread run as soon as something happens (SCHED_FIFO, sched(7)), where that is
/// allowed. What it starts is not like it (`SCHED_RESET_ON_FORK`). A wake-up takes 0.03 ms instead
/// of 0.8 ms on a busy machine.
pub fn watch_in_real_time() -> bool {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the pointer is to our own variable.
    let result = unsafe {
        libc::sched_setscheduler(
            0,
            libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK,
            &raw const lowest,
        )
    };
    result == 0
}

/// Whether a process that was put behind all others can be put back (sched(7), "Privileges and
/// resource limits").
pub fn may_raise_priority() -> bool {
    let status = Proc::default().text("self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let capable = effective.is_some_and(|bits| bits >> CAP_SYS_NICE & 1 == 1);
    let nice = getrlimit_nice();
    capable || nice >= NICE_ZERO
}

fn getrlimit_nice() -> u64 {
    getrlimit(Resource::RLIMIT_NICE).map_or(0, |(soft, _)| soft)
}
