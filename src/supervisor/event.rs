//! The events of the decider, for people and their tools. Each event is emitted once, when it
//! happens.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::supervisor::cause::Cause;
use crate::units::{Bytes, ReportId, RunId, Timestamp, WorkerId};

/// One event.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Event {
    /// The limits in force, at start and whenever they change.
    Limits(Limits),
    /// The command is executed.
    Started {
        /// The run of the command.
        run: RunId,
        /// Its process.
        pid: i32,
    },
    /// The service is ready.
    Ready {
        /// The run of the command.
        run: RunId,
        /// The time since its start.
        after: Duration,
    },
    /// A worker was discovered.
    WorkerSeen {
        /// The worker.
        worker: WorkerId,
        /// Its process.
        pid: i32,
    },
    /// The command, which was one worker until now, runs a server whose children are the workers.
    ServerFound {
        /// The pid of the server's main process.
        pid: i32,
        /// The server's name, as `--server` takes it.
        server: String,
    },
    /// A child of the server's main process is not a worker.
    ServerHelper {
        /// Its pid.
        pid: i32,
        /// Its command line, for people.
        command: String,
    },
    /// A worker is ready to serve.
    WorkerReady {
        /// The worker.
        worker: WorkerId,
        /// The time since it was discovered.
        after: Duration,
    },
    /// A worker has passed a limit, or an operator wants it replaced.
    Due {
        /// The worker.
        worker: WorkerId,
        /// Why it should be replaced.
        cause: Cause,
        /// Its memory now.
        memory: Bytes,
        /// The limit that it passed, lowered by the worker's jitter. `None`: the cause has no such
        /// limit.
        limit: Option<Bytes>,
        /// The same limit without jitter.
        configured: Option<Bytes>,
        /// It is not replaced, because this is a dry run.
        dry_run: bool,
    },
    /// A worker over its ceiling freed enough memory and is not replaced.
    Rescued {
        /// The worker.
        worker: WorkerId,
        /// The memory that it freed.
        freed: Bytes,
        /// Its memory now.
        memory: Bytes,
        /// How often this has happened to this worker.
        times: u32,
    },
    /// A process outlived the worker that started it.
    LeftBehind(Left),
    /// Such a process is being ended, because it has used no CPU for this long. `None`: because
    /// memory is short.
    LeftoverEnded(Left, Option<Duration>),
    /// The processes of a worker share one ceiling and are close to it. Emitted once.
    CeilingShared(SharedCeiling),
    /// A worker's allocations are traced for a while.
    Armed {
        /// The worker.
        worker: WorkerId,
        /// Its memory now.
        memory: Bytes,
        /// Its memory after warm-up.
        baseline: Bytes,
    },
    /// A memory report was made and is kept.
    Reported {
        /// The id of the report.
        report: ReportId,
        /// The worker.
        worker: WorkerId,
        /// Why the report was made.
        cause: Cause,
        /// The report in one line.
        summary: String,
    },
    /// Processes of the service are waiting for memory.
    Pressed {
        /// The memory of the whole service.
        memory: Bytes,
        /// The budget, if there is one.
        budget: Option<Bytes>,
    },
    /// The number of copies of a fleet was chosen (`copies = "auto"`).
    Chosen {
        /// The number.
        workers: u32,
        /// The figures that it follows from.
        why: String,
    },
    /// A surge worker is started before another worker is replaced.
    Raised,
    /// A worker is retired to end the surge.
    Lowered,
    /// A start failed. Workers that serve are not replaced until a start succeeds.
    Suspended {
        /// What failed to start, and how.
        why: String,
        /// The failed start took the service down.
        down: bool,
    },
    /// Workers are replaced again.
    Resumed {
        /// Why recycling resumes.
        why: String,
    },
    /// A worker finishes its requests and exits.
    Draining {
        /// The worker.
        worker: WorkerId,
        /// Why it exits.
        cause: Cause,
    },
    /// A worker or the command has asked for more time to stop (`EXTEND_TIMEOUT_USEC=` of
    /// sd_notify(3)). Emitted for its first message, and when it asks for more than it gets.
    StopExtended(StopExtended),
    /// A worker did not exit within its grace period and was killed with its child processes.
    Killed {
        /// The worker.
        worker: WorkerId,
    },
    /// A worker, or the command itself, ended.
    Ended(End),
    /// The command will be started again.
    Restarting {
        /// The run that will be started.
        run: RunId,
        /// The time until it is started.
        after: Duration,
    },
    /// The supervisor gives up the service, because it ended too often within a window.
    GaveUp {
        /// The number of exits.
        ends: u32,
        /// The window in which they happened.
        window: Duration,
        /// The reason of the last exit.
        last: String,
    },
    /// A new binary of the supervisor has taken over. The service was not affected.
    Upgraded {
        /// Its version.
        version: String,
        /// The version of the old binary.
        from: String,
    },
    /// The service stops.
    Stopping,
    /// The service is over.
    Stopped {
        /// The exit status of the supervisor.
        status: i32,
    },
    /// Workers are capped but not watched, because the supervisor has reached its limit on open
    /// files.
    Unwatched {
        /// Their number. 0: all workers are watched again.
        workers: u32,
        /// The limit on open files.
        limit: u64,
    },
    /// The limits that the history suggests, at the end of a dry run.
    Suggested(Suggested),
    /// A warning to the operator. Most warnings are given only once for each subject.
    Warning(String),
    /// Why the decider did or did not do something. Shown with `--verbose` only.
    Reason {
        /// The worker that the reason is about. `None`: the service.
        worker: Option<WorkerId>,
        /// The reason.
        text: String,
    },
}

/// More time to stop.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct StopExtended {
    /// The worker. `None`: the command.
    pub worker: Option<WorkerId>,
    /// The time until it is killed, unless it asks again.
    pub time: Duration,
    /// What it says it is doing.
    pub status: Option<String>,
    /// It has asked for more time than `stop.extend_max` allows.
    pub cut: bool,
}

/// The limits that the history of a service suggests, in one line.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Suggested {
    /// The ceiling. `None`: too little was seen, or it is a job.
    pub ceiling: Option<Bytes>,
    /// The cap. `None`: too little was seen.
    pub cap: Option<Bytes>,
    /// For people.
    pub text: String,
}

/// A tree of processes under one ceiling.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SharedCeiling {
    /// The worker.
    pub worker: WorkerId,
    /// The number of its processes.
    pub processes: u32,
    /// Their memory.
    pub memory: Bytes,
    /// The ceiling.
    pub ceiling: Bytes,
    /// Nothing says that the ceiling is meant for all of them together.
    pub guessed: bool,
    /// The largest of them, the largest first.
    pub largest: Vec<ProcessSize>,
}

/// A process and its memory.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ProcessSize {
    /// Its pid.
    pub pid: i32,
    /// Its command line, for people.
    pub command: String,
    /// Its anonymous pages.
    pub memory: Bytes,
}

/// A process that outlived the worker that started it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Left {
    /// The worker.
    pub worker: WorkerId,
    /// The process.
    pub pid: i32,
    /// Its command line, for people.
    pub command: String,
    /// Its memory, including its descendants.
    pub memory: Bytes,
}

/// What has ended.
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

/// The end of a worker or server, with its cause and its figures.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct End {
    /// What has ended.
    pub who: Who,
    /// Its process.
    pub pid: i32,
    /// Why it ended.
    pub cause: Cause,
    /// Its memory before it was asked to exit, or in its last sample.
    pub memory: Bytes,
    /// The highest memory it ever had.
    pub peak: Bytes,
    /// The limit that it met or passed.
    pub limit: Option<Bytes>,
    /// Its age at its end.
    pub age: Duration,
    /// Tasks or requests that it has done. `None`: they are not counted.
    pub tasks: Option<u64>,
    /// The time from the request to exit to its end.
    pub drain: Option<Duration>,
    /// It was killed because it did not exit within its grace period.
    pub killed: bool,
    /// When it ended.
    pub at: Timestamp,
    /// Its memory report.
    pub report: Option<ReportId>,
    /// What it ran when it came near the limit at which the kernel killed it: `etl.py:7 load, at
    /// 92M`. The driver adds it to the event.
    #[serde(default)]
    pub ran: Option<String>,
    /// The request or task that it had begun last and not finished when the kernel killed it. The
    /// driver adds it to the event.
    #[serde(default)]
    pub running: Option<Running>,
}

impl End {
    /// An end of which nothing else is known.
    pub const fn of(who: Who, pid: i32, cause: Cause, at: Timestamp) -> Self {
        Self {
            who,
            pid,
            cause,
            memory: Bytes::ZERO,
            peak: Bytes::ZERO,
            limit: None,
            age: Duration::ZERO,
            tasks: None,
            drain: None,
            killed: false,
            at,
            report: None,
            ran: None,
            running: None,
        }
    }
}

/// A request or task in progress.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Running {
    /// The path of the request, without its query, or the name of the task; at most 48 bytes.
    pub request: String,
    /// The time since its begin.
    pub age: Duration,
    /// All requests in progress in its process. It is the newest of them.
    pub in_progress: u64,
}

/// A limit in force, and where it comes from.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Effective {
    /// The limit. `None`: it is switched off.
    pub bytes: Option<Bytes>,
    /// Where it comes from: `given`, `90% of 2G`, `twice the ceiling`.
    pub from: String,
}

/// The limits in force.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Limits {
    /// The memory available to the service.
    pub available: Bytes,
    /// The limit at which a worker is recycled.
    pub ceiling: Effective,
    /// The limit at which the kernel kills a worker.
    pub cap: Effective,
    /// The limit of the whole service.
    pub budget: Effective,
}
