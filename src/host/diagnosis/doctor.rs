//! What this machine supports, found by trying each feature, and how to get what is missing.
#![expect(
    unsafe_code,
    reason = "scheduling classes and PIDFD_GET_INFO are only in libc"
)]

use std::{
    fmt, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use crate::{
    host::{
        cgroup::{Found, Groups},
        discovery::forks::Forks,
        memory::procfs::{Proc, ProcError},
    },
    units::Bytes,
};

/// What this machine supports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Diagnosis {
    /// One for each feature, the most important first.
    pub rows: Vec<Row>,
    /// The memory available to this service.
    pub available: Bytes,
    /// Where that figure comes from.
    pub from: String,
}

/// One feature.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Row {
    /// The feature, in words.
    pub feature: &'static str,
    /// Whether it works here.
    pub works: bool,
    /// The mechanism; if it does not work, its substitute or the reason.
    pub mechanism: String,
    /// How to make it work, if it does not.
    pub hint: Option<String>,
}

/// The memory available to this service: the smallest limit on the path of its control group,
/// otherwise the machine's RAM.
pub fn available() -> Result<Bytes, ProcError> {
    let proc = Proc::default();
    Found::discover(&proc)?.available(&proc)
}

/// Tries every feature, and removes everything that it has made.
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
            "a cap on forked workers without delay",
            "the process connector",
            Forks::listen().map(drop),
            "grant CAP_NET_ADMIN in the machine's network namespace; without it, within 0.1s",
        ),
        attempt(
            "fast reactions on a busy machine",
            "real-time priority",
            try_real_time(),
            "grant CAP_SYS_NICE, or `LimitRTPRIO=1` in the unit",
        ),
        attempt(
            "OOM protection of the supervisor",
            "a lower oom_score_adj",
            try_oom_score(&proc, us),
            "grant CAP_SYS_RESOURCE (`AmbientCapabilities=` in a unit with `User=`)",
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
            "the smallest limit on our control group's path".to_owned()
        } else {
            "the machine's memory; no control group limits us".to_owned()
        },
    })
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = self.rows.iter().peekable();
        while let Some(row) = rows.next() {
            let word = if row.works { "yes" } else { "no" };
            writeln!(f, "{word:<4}{}: {}", row.feature, row.mechanism)?;
            // Consecutive rows with the same hint show it once, below the last of them.
            let is_last = rows.peek().is_none_or(|next| next.hint != row.hint);
            if let Some(hint) = row.hint.as_ref().filter(|_| is_last) {
                writeln!(f, "    hint: {hint}")?;
            }
        }
        writeln!(f, "memory available: {}, {}", self.available, self.from)
    }
}

fn memory_rows(groups: &Groups, proc: &Proc) -> Vec<Row> {
    let trial = groups.trial();
    let [cap, threshold] = groups.limit_files();
    let no_swap = proc
        .text("swaps")
        .is_ok_and(|text| text.lines().count() <= 1);
    let swap = if trial.swap {
        "swap is counted"
    } else {
        "this machine has no swap"
    };
    let hint = groups.obstacle().map(ToString::to_string);
    let row = |feature, works, mechanism: &str, instead: &str, hint: Option<String>| Row {
        feature,
        works,
        mechanism: if works { mechanism } else { instead }.to_owned(),
        hint: hint.filter(|_| !works),
    };
    vec![
        row(
            "a cap on each worker",
            trial.cap,
            cap,
            "only RLIMIT_DATA, for each process by itself",
            hint.clone(),
        ),
        row(
            "a budget over all workers",
            trial.budget,
            cap,
            "sums of samples instead",
            hint.clone(),
        ),
        row(
            "a threshold at the ceiling",
            trial.threshold,
            threshold,
            "samples instead, more frequent near the ceiling",
            hint.or_else(|| Some("a kernel with cgroup.event_control is needed".to_owned())),
        ),
        row(
            "a cap that includes swap",
            trial.swap || no_swap,
            swap,
            "swap is not counted",
            Some("boot with `swapaccount=1`, or without swap".to_owned()),
        ),
        row(
            "killing a worker with all its child processes",
            trial.kill,
            "cgroup v2, cgroup.kill",
            "one SIGKILL for each process instead",
            Some("Linux 5.14 or later and a writable cgroup2 mount are needed".into()),
        ),
    ]
}

fn attempt(feature: &'static str, mechanism: &str, result: io::Result<()>, hint: &str) -> Row {
    let is_missing = result.is_err();
    Row {
        feature,
        works: !is_missing,
        mechanism: result.map_or_else(
            |error| format!("{mechanism}: {error}"),
            |()| mechanism.to_owned(),
        ),
        hint: is_missing.then(|| hint.to_owned()),
    }
}

/// Becomes a real-time thread, and goes back to the policy before (sched(7)).
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

/// Asks the kernel about our own process. Since Linux 6.15 the answer has the exit status, but only
/// for processes that have ended, so this checks the version of the kernel as well.
fn try_exit_status(proc: &Proc, us: i32) -> io::Result<()> {
    // SAFETY: takes two numbers, and returns a new descriptor without another owner, or -1.
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
        let why = format!("Linux {} does not report exit statuses", release.trim());
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
    fn a_diagnosis_shows_each_feature_with_its_reason_and_a_hint() {
        let row = |works: bool| Row {
            feature: "a cap on each worker",
            works,
            mechanism: "cgroup v2, memory.max".to_owned(),
            hint: (!works).then(|| "set `Delegate=yes` in the unit".to_owned()),
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
    hint: set `Delegate=yes` in the unit
memory available: 512M, the smallest limit
";
        assert_eq!(diagnosis.to_string(), expected);
    }

    #[test]
    fn a_kernel_release_is_parsed_to_its_version() {
        assert_eq!(version("6.18.44-cloud\n"), (6, 18));
        assert_eq!(version("strange"), (0, 0));
    }

    #[test]
    fn an_examination_changes_neither_the_score_nor_the_group_nor_the_policy() {
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
            .filter(|row| !row.works && row.hint.is_none())
            .collect();
        assert!(missing.is_empty(), "no way to get {missing:?}");
        eprintln!("{diagnosis}");
    }
}
