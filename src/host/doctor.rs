//! What this machine lets us hold, found by trying it, and how to get the rest.
#![expect(
    unsafe_code,
    reason = "scheduling classes and PIDFD_GET_INFO are only in libc"
)]

use std::{
    fmt, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::{
    cgroup::{Found, Groups},
    forks::Forks,
    procfs::{Proc, ProcError},
};
use crate::{supervisor::event::CapMechanism, units::Bytes};

/// The findings.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Diagnosis {
    /// One for each promise, the weightiest first.
    pub rows: Vec<Row>,
    /// What this service may have.
    pub available: Bytes,
    /// Where that figure comes from.
    pub from: String,
}

/// One promise.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Row {
    /// What is promised.
    pub promise: &'static str,
    /// It holds here.
    pub holds: bool,
    /// By what; if it does not hold, what there is instead, or why not.
    pub by: String,
    /// How to get it, if it does not hold.
    pub get: Option<String>,
}

/// What this service may have: the smallest limit up its control group's path, else the machine's
/// RAM.
pub fn available() -> Result<Bytes, ProcError> {
    let proc = Proc::default();
    Found::discover(&proc)?.available(&proc)
}

/// Tries everything. Leaves nothing behind.
pub fn examine() -> Result<Diagnosis, ProcError> {
    let proc = Proc::default();
    let us = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
    let found = Found::discover(&proc)?;
    let available = found.available(&proc)?;
    let is_limited = available < proc.mem_total()?;
    let mut groups = Groups::create(&found, "doctor", us);
    let mut rows = memory_rows(&groups, &proc);
    groups.remove_all();
    rows.extend([
        attempt(
            "a forked worker is seen and capped at once",
            "the process connector",
            Forks::listen().map(drop),
            "give it CAP_NET_ADMIN in the machine's network namespace; without, within 0.1 s",
        ),
        attempt(
            "the watcher wakes at once on a busy machine",
            "real-time priority",
            try_real_time(),
            "give it CAP_SYS_NICE, or `LimitRTPRIO=1` in the unit",
        ),
        attempt(
            "the supervisor is the last that the OOM killer takes",
            "a lower oom_score_adj",
            try_oom_score(&proc, us),
            "give it CAP_SYS_RESOURCE (`AmbientCapabilities=` in a unit with `User=`)",
        ),
        attempt(
            "the exit status of processes that are not our children",
            "PIDFD_GET_INFO",
            try_exit_status(&proc, us),
            "Linux 6.15 or later is needed",
        ),
    ]);
    Ok(Diagnosis {
        rows,
        available,
        from: if is_limited {
            "the smallest limit up our control group's path".to_owned()
        } else {
            "the machine's memory; no control group limits us".to_owned()
        },
    })
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = self.rows.iter().peekable();
        while let Some(row) = rows.next() {
            let word = if row.holds { "yes" } else { "no" };
            writeln!(f, "{word:<4}{}: {}", row.promise, row.by)?;
            // What cures several in a row is said once, below the last.
            let is_last = rows.peek().is_none_or(|next| next.get != row.get);
            if let Some(get) = row.get.as_ref().filter(|_| is_last) {
                writeln!(f, "    to get it: {get}")?;
            }
        }
        writeln!(f, "memory available: {}, {}", self.available, self.from)
    }
}

fn memory_rows(groups: &Groups, proc: &Proc) -> Vec<Row> {
    let trial = groups.trial();
    let [cap, wire] = match groups.caps() {
        CapMechanism::CgroupV2 => ["cgroup v2, memory.max", "cgroup v2, memory.high"],
        CapMechanism::CgroupV1 => ["cgroup v1, memory.limit_in_bytes", "cgroup v1, a threshold"],
        CapMechanism::Rlimit => ["", ""],
    };
    let no_swap = proc
        .text("swaps")
        .is_ok_and(|text| text.lines().count() <= 1);
    let swap = if trial.swap {
        "swap is counted"
    } else {
        "there is no swap here"
    };
    let get = groups.obstacle().map(ToString::to_string);
    let row = |promise, holds, by: &str, instead: &str, get: Option<String>| Row {
        promise,
        holds,
        by: if holds { by } else { instead }.to_owned(),
        get: get.filter(|_| !holds),
    };
    vec![
        row(
            "a cap on each worker",
            trial.cap,
            cap,
            "only RLIMIT_DATA, for each process by itself",
            get.clone(),
        ),
        row(
            "a budget over all workers",
            trial.budget,
            cap,
            "our own sums instead",
            get.clone(),
        ),
        row(
            "a trip wire at the ceiling",
            trial.wire,
            wire,
            "forecast sampling instead",
            get.or_else(|| Some("a kernel with cgroup.event_control is needed".to_owned())),
        ),
        row(
            "a cap that swap does not undo",
            trial.swap || no_swap,
            swap,
            "swap is not counted",
            Some("boot with `swapaccount=1`, or without swap".to_owned()),
        ),
        row(
            "a worker ends with all its helpers at one blow",
            trial.kill,
            "cgroup v2, cgroup.kill",
            "one SIGKILL for each process instead",
            Some("Linux 5.14 or later is needed, and cgroup2 mounted where we may write".into()),
        ),
    ]
}

fn attempt(promise: &'static str, by: &str, result: io::Result<()>, get: &str) -> Row {
    let is_missing = result.is_err();
    Row {
        promise,
        holds: !is_missing,
        by: result.map_or_else(|error| format!("{by}: {error}"), |()| by.to_owned()),
        get: is_missing.then(|| get.to_owned()),
    }
}

/// Becomes a real-time thread and stops being one (sched(7)).
fn try_real_time() -> io::Result<()> {
    // SAFETY: takes a number and touches no memory of ours.
    let before = unsafe { libc::sched_getscheduler(0) };
    if before < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut was = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel writes one sched_param, which lives until the call is over.
    check(unsafe { libc::sched_getparam(0, &raw mut was) })?;
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads one sched_param, which lives until the call is over.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) })?;
    // SAFETY: as above.
    check(unsafe { libc::sched_setscheduler(0, before, &raw const was) })
}

/// Lowers our score by one and raises it again (proc(5)).
fn try_oom_score(proc: &Proc, us: i32) -> io::Result<()> {
    let invalid = |error: &dyn fmt::Display| io::Error::other(error.to_string());
    let text = proc
        .text("self/oom_score_adj")
        .map_err(|error| invalid(&error))?;
    let score: i32 = text.trim().parse().map_err(|error| invalid(&error))?;
    if score == -1000 {
        return Ok(());
    }
    let set = |score| proc.set_oom_score_adj(us, score);
    set(score - 1)
        .and_then(|()| set(score))
        .map_err(|error| invalid(&error))
}

/// `struct pidfd_info` in its first size, and its request (`linux/pidfd.h`).
const PIDFD_INFO_BYTES: usize = 64;
const PIDFD_GET_INFO: libc::Ioctl = 0xC040_FF0B;

/// Asks for what the kernel knows of ourselves. It has the exit status in it since Linux 6.15, but
/// only for processes that are over, so the version is asked for as well.
fn try_exit_status(proc: &Proc, us: i32) -> io::Result<()> {
    // SAFETY: takes two numbers and gives a new descriptor that nobody else owns, or -1.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, us, 0) };
    let raw = i32::try_from(raw).map_err(io::Error::other)?;
    check(raw.min(0))?;
    // SAFETY: the kernel has just given it to us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(raw) };
    let mut info = [0_u64; PIDFD_INFO_BYTES / 8];
    // SAFETY: the kernel reads and writes 64 bytes, as the request says, and these live until the
    // call is over.
    check(unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, info.as_mut_ptr()) })?;
    let release = proc.text("sys/kernel/osrelease").unwrap_or_default();
    if version(&release) < (6, 15) {
        let why = format!("Linux {} keeps no exit status", release.trim());
        return Err(io::Error::other(why));
    }
    Ok(())
}

/// `6.18.44-cloud` is (6, 18).
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnosis_reads_as_promises_with_their_reasons() {
        let row = |holds: bool| Row {
            promise: "a cap on each worker",
            holds,
            by: "cgroup v2, memory.max".to_owned(),
            get: (!holds).then(|| "set `Delegate=yes` in the unit".to_owned()),
        };
        let diagnosis = Diagnosis {
            rows: vec![row(true), row(false), row(false)],
            available: Bytes::mib(512),
            from: "the smallest limit".to_owned(),
        };
        let expected = "\
yes a cap on each worker: cgroup v2, memory.max
no  a cap on each worker: cgroup v2, memory.max
no  a cap on each worker: cgroup v2, memory.max
    to get it: set `Delegate=yes` in the unit
memory available: 512M, the smallest limit
";
        assert_eq!(diagnosis.to_string(), expected);
    }

    #[test]
    fn a_release_has_a_version() {
        assert_eq!(version("6.18.44-cloud\n"), (6, 18));
        assert_eq!(version("strange"), (0, 0));
    }

    #[test]
    fn an_examination_leaves_everything_as_it_was() {
        let proc = Proc::default();
        let score = || proc.text("self/oom_score_adj").unwrap();
        let class = || proc.text("thread-self/sched").ok();
        let (score_before, group_before) = (score(), proc.text("self/cgroup").unwrap());
        let policy = |text: Option<String>| {
            let line = text?
                .lines()
                .find(|line| line.starts_with("policy"))?
                .to_owned();
            Some(line)
        };
        let policy_before = policy(class());
        let diagnosis = examine().unwrap();
        assert_eq!(score(), score_before);
        assert_eq!(proc.text("self/cgroup").unwrap(), group_before);
        assert_eq!(policy(class()), policy_before);
        let missing: Vec<_> = diagnosis
            .rows
            .iter()
            .filter(|row| !row.holds && row.get.is_none())
            .collect();
        assert!(missing.is_empty(), "no way to get {missing:?}");
        eprintln!("{diagnosis}");
    }
}
