//! What observers are told: each thing once, as it happens, and the whole picture when asked.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, ReportId, RunId, Signal, Timestamp, WorkerId};

use super::event::{Agent, CapMechanism, Ended, Oom};

/// One thing worth telling.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Report {
    /// The limits in force, said at start and whenever they change.
    Limits(Limits),
    /// The command is executed.
    Started {
        /// Which start.
        run: RunId,
        /// Its process.
        pid: i32,
    },
    /// The service answers.
    Ready {
        /// Which start.
        run: RunId,
        /// Since its start.
        after: Duration,
    },
    /// A worker was seen.
    WorkerSeen {
        /// Which.
        worker: WorkerId,
        /// Its process.
        pid: i32,
    },
    /// A child of the server's main process is not a worker.
    ServerHelper {
        /// Its pid.
        pid: i32,
        /// Its command line, for people.
        command: String,
    },
    /// A worker serves.
    WorkerReady {
        /// Which.
        worker: WorkerId,
        /// Since it was seen.
        after: Duration,
    },
    /// A worker is to be replaced.
    Due {
        /// Which.
        worker: WorkerId,
        /// Why.
        cause: Cause,
        /// Its memory now.
        memory: Bytes,
        /// The limit it passed, for causes that have one; lowered by the worker's jitter.
        limit: Option<Bytes>,
        /// That limit as it is configured.
        configured: Option<Bytes>,
        /// Nothing will be done about it: `--dry-run`.
        dry_run: bool,
    },
    /// Over its ceiling a worker gave enough back, and stays.
    Rescued {
        /// Which.
        worker: WorkerId,
        /// So much.
        freed: Bytes,
        /// What it holds now.
        memory: Bytes,
        /// How often this worker has been by now.
        times: u32,
    },
    /// A process outlived the worker that started it.
    LeftBehind(Left),
    /// Such a process is being ended, because it has used no CPU for this long; `None`: because
    /// memory is short.
    LeftoverEnded(Left, Option<Duration>),
    /// A worker's growth is traced for a while.
    Armed {
        /// Whose.
        worker: WorkerId,
        /// What it holds.
        memory: Bytes,
        /// After warm-up.
        baseline: Bytes,
    },
    /// A report is kept.
    Reported {
        /// Under this id.
        report: ReportId,
        /// Whose it is.
        worker: WorkerId,
        /// Why it was taken.
        cause: Cause,
        /// What it says in one line.
        summary: String,
    },
    /// Processes of the service wait for memory.
    Pressed {
        /// What all together hold.
        memory: Bytes,
        /// What they may.
        budget: Option<Bytes>,
    },
    /// A replacement is raised before anybody goes.
    Raised,
    /// The spare worker is given back.
    Lowered,
    /// A start failed: no worker that serves is replaced until one works.
    Suspended {
        /// Which start, and how it failed.
        why: String,
        /// The failed start took the service down.
        down: bool,
    },
    /// Workers are replaced again.
    Resumed {
        /// Why recycling resumes.
        why: String,
    },
    /// A worker drains.
    Draining {
        /// Which.
        worker: WorkerId,
        /// Why.
        cause: Cause,
    },
    /// A worker did not go in its time and was killed with all its helpers.
    Killed {
        /// Which.
        worker: WorkerId,
    },
    /// A worker, or the command itself, ended.
    Ended(End),
    /// The command will be started again.
    Restarting {
        /// Which start this will be.
        run: RunId,
        /// After that long.
        after: Duration,
    },
    /// The service is given up: too many ends in too short a time.
    GaveUp {
        /// So many.
        ends: u32,
        /// In that long.
        window: Duration,
        /// The reason of the last of them.
        last: String,
    },
    /// Another binary has taken over; nothing else has changed.
    Upgraded {
        /// Its version.
        version: String,
        /// The one before.
        from: String,
    },
    /// The service stops.
    Stopping,
    /// The service is over.
    Stopped {
        /// With this exit status.
        status: i32,
    },
    /// Workers are capped but not watched, because no more files may be open.
    Unwatched {
        /// Their number; 0: all workers are watched again.
        workers: u32,
        /// The limit on open files.
        limit: u64,
    },
    /// Something is not as the operator would want it. Said once for each cause.
    Warning(String),
}

/// A process that outlived the worker which started it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Left {
    /// Which worker.
    pub worker: WorkerId,
    /// The process.
    pub pid: i32,
    /// Its command line, for people.
    pub command: String,
    /// What it holds, its descendants included.
    pub memory: Bytes,
}

/// Why a worker ended or is to end (DESIGN §4).
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Cause {
    /// Its memory passed the ceiling.
    Ceiling,
    /// The kernel ended it at its own cap.
    Cap,
    /// The kernel ended it for a limit further up.
    Oom,
    /// All together came close to the budget, and this one was recycled for it.
    Budget,
    /// The kernel killed it because all together were over the budget.
    BudgetKill,
    /// It did its number of tasks.
    Tasks,
    /// It was old enough.
    Age,
    /// An operator's wish.
    Request,
    /// A reload.
    Reload,
    /// There were more than are wanted.
    Scale,
    /// It exited by itself with this status.
    Exit(i32),
    /// A signal from somebody else ended it.
    Signal(Signal),
    /// It could not be started.
    StartFailed,
    /// It never became ready.
    Unready,
    /// It stopped answering.
    Hung,
    /// The service stopped, or its server did.
    Stop,
    /// It ended by itself, and this kernel does not tell how.
    Unseen,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Self::Ceiling => "ceiling",
            Self::Cap => "cap",
            Self::Oom => "oom",
            Self::Budget => "budget",
            Self::BudgetKill => "budget-kill",
            Self::Tasks => "tasks",
            Self::Age => "age",
            Self::Request => "request",
            Self::Reload => "reload",
            Self::Scale => "scale",
            Self::Exit(status) => return write!(f, "exit:{status}"),
            Self::Signal(signal) => return write!(f, "signal:{signal}"),
            Self::StartFailed => "start-failed",
            Self::Unready => "unready",
            Self::Hung => "hung",
            Self::Stop => "stop",
            Self::Unseen => "exit:unseen",
        };
        f.write_str(word)
    }
}

impl Cause {
    /// What an end that nobody asked for came from.
    pub const fn of(ended: Ended, oom: Oom) -> Self {
        match (oom, ended) {
            (Oom::Cap, _) => Self::Cap,
            (Oom::Budget, _) => Self::BudgetKill,
            (Oom::Elsewhere, _) => Self::Oom,
            (Oom::No, Ended::Exit(status)) => Self::Exit(status),
            (Oom::No, Ended::Signal(signal)) => Self::Signal(signal),
            (Oom::No, Ended::Unseen) => Self::Unseen,
        }
    }
}

/// Who ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Who {
    /// A worker.
    Worker(WorkerId),
    /// The wrapped server's own main process.
    Server,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker(worker) => worker.fmt(f),
            Self::Server => f.write_str("server"),
        }
    }
}

/// One end, with its one cause and its figures.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct End {
    /// Whose.
    pub who: Who,
    /// The process it was.
    pub pid: i32,
    /// Why.
    pub cause: Cause,
    /// Its memory when it was last seen.
    pub memory: Bytes,
    /// The highest it ever was.
    pub peak: Bytes,
    /// The limit it met or passed.
    pub limit: Option<Bytes>,
    /// How old it became.
    pub age: Duration,
    /// Tasks or requests it did, where they are counted.
    pub tasks: Option<u64>,
    /// Between asking it to go and its end.
    pub drain: Option<Duration>,
    /// It had to be killed.
    pub killed: bool,
    /// When.
    pub at: Timestamp,
    /// What it said about its memory before.
    pub report: Option<ReportId>,
}

/// A limit in force, and where it comes from.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Effective {
    /// `None`: switched off.
    pub bytes: Option<Bytes>,
    /// In words: `given`, `90% of 2G`, `twice the ceiling`.
    pub from: String,
}

/// The limits in force.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Limits {
    /// What the service may have.
    pub available: Bytes,
    /// For each worker, graceful.
    pub ceiling: Effective,
    /// For each worker, by the kernel.
    pub cap: Effective,
    /// For all together.
    pub budget: Effective,
}

/// The whole picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The service's name.
    pub name: String,
    /// `server`, `fleet`, `job` or `pool`.
    pub mode: String,
    /// The command's main process, while there is one.
    pub command_pid: Option<i32>,
    /// The service answers.
    pub ready: bool,
    /// It is being stopped.
    pub stopping: bool,
    /// What keeps the service from working as it should at the moment: workers that cannot start,
    /// or a budget that something outside the workers fills.
    pub problem: Option<String>,
    /// What holds a cap here.
    pub caps: CapMechanism,
    /// A cap is set, and the kernel holds it for the whole worker.
    pub enforced: bool,
    /// Why not, if not.
    pub why_not: Option<String>,
    /// The trip wire is in use.
    pub wire: bool,
    /// What is held against the ceiling: `private`, `rss`, `pss` or `cgroup`.
    pub measure: String,
    /// The limits in force.
    pub limits: Limits,
    /// Live workers, oldest first.
    pub workers: Vec<WorkerView>,
    /// Ends by planned cause.
    pub recycles: BTreeMap<String, u64>,
    /// Ends nobody planned, by cause.
    pub unplanned: BTreeMap<String, u64>,
    /// Starts of the command after the first.
    pub restarts: u64,
    /// The last ends, oldest first.
    pub ends: Vec<End>,
    /// Requests or tasks done by all workers, those that have ended too; `None`: nobody counts.
    pub requests: Option<u64>,
    /// Workers that gave enough back at their ceiling and stayed.
    pub rescues: u64,
    /// No worker is replaced at the moment: a start failed.
    pub suspended: Option<SuspendedView>,
    /// Starts of replacements that failed.
    pub failed_starts: u64,
    /// Processes that outlived their worker.
    pub leftovers: Vec<LeftoverView>,
    /// How many of those were ended.
    pub leftovers_ended: u64,
}

/// Why no worker is replaced at the moment.
#[derive(Clone, Debug, PartialEq)]
pub struct SuspendedView {
    /// Which start failed, and how.
    pub why: String,
    /// How long it has lasted.
    pub lasts: Duration,
    /// Failed starts in a row.
    pub failures: u32,
}

/// A process that outlived its worker, with its descendants.
#[derive(Clone, Debug, PartialEq)]
pub struct LeftoverView {
    /// Which worker had started it.
    pub worker: WorkerId,
    /// The topmost process.
    pub pid: i32,
    /// Its command line, for people.
    pub command: String,
    /// What all of them hold.
    pub memory: Bytes,
    /// Number of these processes.
    pub processes: u32,
    /// How long they have used no CPU.
    pub idle: Duration,
}

/// One live worker.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerView {
    /// Its name.
    pub id: WorkerId,
    /// Its process.
    pub pid: i32,
    /// Its place, from 0.
    pub slot: u32,
    /// `starting`, `ready` or `draining`.
    pub state: String,
    /// How old it is.
    pub age: Duration,
    /// Tasks or requests it did, where they are counted.
    pub tasks: Option<u64>,
    /// The same, a second, lately.
    pub tasks_per_s: Option<f64>,
    /// Growth since the baseline for each of them done since.
    pub bytes_per_task: Option<f64>,
    /// Whether it can be asked.
    pub agent: Agent,
    /// Its growth is traced at the moment.
    pub traced: bool,
    /// How often it gave enough back at its ceiling and stayed.
    pub rescues: u32,
    /// Its processes.
    pub processes: u32,
    /// Its memory.
    pub memory: MemoryView,
}

/// One worker's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MemoryView {
    /// Private pages and swap: the last exact figure moved on by what is cheap to see.
    pub private: Bytes,
    /// Resident pages.
    pub rss: Bytes,
    /// Proportional, of the last exact look.
    pub pss: Option<Bytes>,
    /// What its cgroup is charged with.
    pub cgroup: Option<Bytes>,
    /// The highest of the measure.
    pub peak: Bytes,
    /// After warm-up.
    pub baseline: Option<Bytes>,
    /// Growth in bytes a second.
    pub slope_bps: Option<f64>,
    /// Until the ceiling at that slope.
    pub to_ceiling: Option<Duration>,
}
