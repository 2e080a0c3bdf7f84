//! The inputs of the decider: everything that can happen, including the passing of time.
//!
//! Inputs may come late. An input about a worker or a run that is over is ignored.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::servers::profile::Profile;
use crate::supervisor::{cause::Cause, event::ProcessSize, snapshot::HelperView};
use crate::units::{Bytes, ReportId, RequestId, RunId, Signal, Timestamp, WorkerId};

pub use super::ask::{Ask, Stop};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The deadline of [`crate::supervisor::Supervisor::poll_deadline`] has passed.
    Deadline,
    /// The memory available to this service: the smallest limit of its cgroup and the cgroups
    /// above, or else the machine's RAM. Comes at start and again whenever it changes.
    Available(Bytes),
    /// What can be enforced on this machine. Comes once, before the first start.
    Machine(Machine),

    /// The command is executed. A single program's process is its worker.
    Started {
        /// The run of the command.
        run: RunId,
        /// The process that executes it.
        pid: i32,
    },
    /// The command could not be executed.
    StartFailed {
        /// The run of the command.
        run: RunId,
        /// `errno` of execve(2), or of an earlier step.
        errno: i32,
        /// What was tried, and why it failed.
        error: String,
    },
    /// The service is ready, by the test that the settings name
    /// ([`crate::supervisor::spec::ReadyWhen`]).
    ServiceReady {
        /// The run of the command.
        run: RunId,
    },
    /// The command or a worker has sent a message to its `NOTIFY_SOCKET` (sd_notify(3)).
    Notified(Notification),
    /// No connection waits to be accepted by the command, as far as this can be observed.
    BacklogEmpty {
        /// The run of the command.
        run: RunId,
    },
    /// The command's main process ended.
    CommandEnded {
        /// The run of the command.
        run: RunId,
        /// How it ended.
        ended: Ended,
        /// Whether the kernel killed a server's main process for memory. For a single program this
        /// is in `WorkerEnded`.
        oom: Oom,
        /// The pid of a second master that keeps serving (gunicorn's USR2). The run continues with
        /// it.
        successor: Option<i32>,
    },
    /// No process of this run is left.
    RunOver {
        /// The run of the command.
        run: RunId,
    },
    /// The current number of the server's main processes (two after gunicorn's USR2).
    Masters {
        /// The run of the command.
        run: RunId,
        /// Their number.
        count: u32,
    },

    /// A worker of a server was seen for the first time. If there are several, the oldest comes
    /// first.
    WorkerSeen {
        /// The run of the command.
        run: RunId,
        /// Its process.
        pid: i32,
    },
    /// A process that was taken for a worker is a helper of the server: it executed another
    /// program, or never had a heartbeat file. It is no longer watched as a worker.
    NoWorker {
        /// The worker.
        worker: WorkerId,
    },
    /// A child of the server's main process that is not a worker, such as a resource tracker.
    ServerHelper(
        /// Its pid.
        i32,
        /// Its command line, for people.
        String,
    ),
    /// All such children and the processes below them. Comes periodically.
    ServerHelpers(Vec<HelperView>),
    /// A command that counts as one worker has started a known server.
    ServerFound {
        /// The pid of the server's main process.
        pid: i32,
        /// The server.
        server: &'static Profile,
    },
    /// All processes that outlived the worker that started them. Comes periodically while there are
    /// any, and once more with an empty list when the last one has ended.
    LeftBehind(Vec<Leftover>),
    /// A worker does not leave well when it is asked: it does not handle the signal, or its server
    /// would stop all its workers. For a single program this comes when the signal is sent.
    LeavesBadly(WorkerId),
    /// A worker is ready to serve.
    WorkerReady {
        /// The worker.
        worker: WorkerId,
    },
    /// A copy that starts has answered its readiness probe with this status of a failure.
    CopyFails(WorkerId, u16),
    /// A worker's process has ended.
    WorkerEnded {
        /// The worker.
        worker: WorkerId,
        /// How it ended.
        ended: Ended,
        /// Whether the kernel killed it for memory.
        oom: Oom,
        /// After a kill at its cap: the highest charge of its cgroup. After any other end: its
        /// highest resident memory. `None`: the kernel does not provide it.
        peak: Option<Bytes>,
    },
    /// The kernel killed a child process of a worker, and not the worker itself.
    HelperKilled {
        /// The worker.
        worker: WorkerId,
        /// The limit at which it was killed.
        oom: Oom,
        /// All other processes of the worker are killed too.
        whole: bool,
    },

    /// The kernel enforces a higher limit than the cap that was written, because the worker already
    /// holds more memory than that and the kernel cannot reclaim it.
    CapHigher {
        /// The worker.
        worker: WorkerId,
        /// The limit in force.
        limit: Bytes,
    },
    /// A sample of a worker's memory.
    Sampled {
        /// The worker.
        worker: WorkerId,
        /// The figures.
        sample: Sample,
    },
    /// The largest processes of a worker, the largest first.
    ProcessesListed(WorkerId, Vec<ProcessSize>),
    /// The charge of a worker's cgroup has reached its threshold, so a sample is due at once.
    ThresholdReached {
        /// The worker.
        worker: WorkerId,
    },
    /// The charge of all cgroups of the service. Comes periodically, if they can be read.
    Held {
        /// The part that the kernel cannot reclaim: anonymous pages, shared memory, tmpfs.
        held: Bytes,
    },
    /// What the budget is charged with besides the memory of workers. Comes if it may be large.
    Contents(Contents),
    /// Processes have waited for memory: an early sign of a limit, so all workers are sampled.
    MemoryPressure,
    /// A sample of the server's own processes without its workers.
    ServerSampled {
        /// Their private memory.
        private: Bytes,
    },

    /// The charge of the cgroup above the service that is nearest to its limit. Above the limit the
    /// kernel kills processes; under Kubernetes it kills the whole container.
    Charged {
        /// The charge, without page cache that the kernel can reclaim.
        used: Bytes,
        /// The limit.
        of: Bytes,
    },

    /// The result of a search for the agent in a worker.
    AgentFound {
        /// The worker.
        worker: WorkerId,
        /// What was found.
        agent: Agent,
        /// The worker runs Python, so it should have an agent.
        expected: bool,
    },
    /// A worker's agent has answered a request, or cannot answer it. There is one answer to each
    /// [`crate::supervisor::action::Action::AskAgent`], unless the worker ends or does not respond.
    AgentAnswered {
        /// The worker.
        worker: WorkerId,
        /// The answer.
        answer: AgentAnswer,
    },
    /// The counts of a worker since its start, all its processes together.
    Counted {
        /// The worker.
        worker: WorkerId,
        /// The counts.
        counts: Counts,
    },
    /// The counts of a worker by route, and its memory at the same moment.
    RoutesRead {
        /// The worker.
        worker: WorkerId,
        /// Routes that have done requests since the last reading, and the number of these requests.
        done: Vec<(Arc<str>, u64)>,
        /// The memory. `None`: it has ended.
        memory: Option<Resident>,
    },

    /// The supervisor received a signal.
    Signalled(Signal),
    /// An operator's request.
    Asked {
        /// Answered with [`crate::supervisor::action::Action::Reply`], exactly once.
        request: RequestId,
        /// What the operator asks for.
        ask: Ask,
    },
    /// The result of [`crate::supervisor::action::Action::CheckUpgrade`].
    UpgradeChecked {
        /// The operator's request.
        request: RequestId,
        /// The version of the new binary, or why it cannot take over.
        verdict: Result<String, String>,
    },
    /// Workers are capped but not watched, because the supervisor has too many files open.
    Unwatched {
        /// Their number. 0: all workers are watched again.
        workers: u32,
        /// The limit on open files.
        limit: u64,
    },
    /// An action failed. No other input follows from it.
    Failed {
        /// What was tried on which object, and why it failed.
        what: String,
        /// The worker that the action was for.
        worker: Option<WorkerId>,
        /// What does not work because of it.
        effect: Effect,
    },
}

/// A process that outlived its worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Leftover {
    /// The worker that started it.
    pub worker: WorkerId,
    /// Its pid.
    pub pid: i32,
    /// Its start time in clock ticks since boot. Pid and start time together identify it.
    pub started: u64,
    /// The pid of the topmost leftover that it descends from, or its own if it is the topmost.
    pub tree: i32,
    /// Its command line, for people.
    pub command: String,
    /// Its anonymous pages.
    pub memory: Bytes,
    /// How long it has used no CPU since it was first watched.
    pub idle: Duration,
}

/// What a process of the service says about itself (sd_notify(3)).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Notification {
    /// The run of the command.
    pub run: RunId,
    /// The worker that has sent it. `None`: the command, which is not a worker.
    pub worker: Option<WorkerId>,
    /// `STATUS=`: what it is doing, safe for a terminal.
    pub status: Option<String>,
    /// `EXTEND_TIMEOUT_USEC=`: how much more time it needs from now.
    pub extend: Option<Duration>,
}

/// What a failed action was for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// A cap.
    Cap,
    /// The budget.
    Budget,
    /// A threshold.
    Threshold,
    /// A signal or a kill.
    Signal,
    /// A sample of memory.
    Sample,
    /// Anything else.
    Other,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// It exited with this status.
    Exit(i32),
    /// A signal ended it.
    Signal(Signal),
    /// It has ended, and it is unknown how: it is not a child of the supervisor, and the kernel has
    /// neither `PIDFD_GET_INFO` (Linux 6.15) nor the process connector.
    Unseen,
}

/// Whether the OOM killer ended a process, by the kernel's counters.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Oom {
    /// The OOM killer did not kill it.
    #[default]
    No,
    /// It was killed at the worker's own cap.
    Cap,
    /// It was killed at the budget.
    Budget,
    /// It was killed at a limit above the service, or because the machine was out of memory.
    Elsewhere,
}

/// A sample of a worker's memory, all its processes together.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Sample {
    /// When the figures were read.
    pub at: Timestamp,
    /// Resident pages (`/proc/PID/statm`).
    pub rss: Bytes,
    /// Resident pages that are not backed by a file (`statm`: resident less shared).
    pub anon: Bytes,
    /// Resident pages of shared memory, named or not (`RssShmem`).
    pub shmem: Bytes,
    /// The charge of its cgroup including page cache, if it has a cgroup.
    pub cgroup: Option<Bytes>,
    /// The charge of its cgroup without what the kernel can reclaim, if that was read.
    pub held: Option<Bytes>,
    /// The exact figures, only in an exact sample.
    pub exact: Option<Exact>,
    /// The number of its processes.
    pub processes: u32,
}

/// What the budget is charged with besides the memory of processes.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Contents {
    /// Files in a tmpfs, shared memory and memfds. They may outlive all processes.
    pub shared: Bytes,
    /// Page tables, stacks of threads, slabs.
    pub kernel: Bytes,
    /// The largest files that can be seen in a tmpfs, largest first.
    pub files: Vec<TmpfsFile>,
    /// Number of further files.
    pub more_files: u64,
    /// Size of those further files together.
    pub more_size: Bytes,
}

/// A file in a tmpfs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TmpfsFile {
    /// Its path.
    pub path: String,
    /// Its size in memory.
    pub size: Bytes,
}

/// The figures that are expensive to read (`/proc/PID/smaps_rollup` and `smaps`).
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Exact {
    /// What its end would free: anonymous pages, unnamed shared memory, swap and huge pages. File
    /// pages are not included.
    pub private: Bytes,
    /// Resident anonymous pages that no other process shares. Never an overestimate.
    pub anon: Bytes,
    /// Private pages, its share of the shared ones, and swap.
    pub pss: Bytes,
    /// As `private`, plus its share of pages that several processes share. If only processes of
    /// this worker share them, this is what the end of all its processes would free. `None`: the
    /// kernel does not provide it.
    pub share: Option<Bytes>,
    /// Anonymous pages charged to its own cgroup, for a worker that was moved into its cgroup. Its
    /// earlier pages are charged elsewhere.
    pub charged: Option<Bytes>,
    /// How long the sample took. The process was stalled for a part of it.
    pub took: Duration,
}

/// Whether a worker has an agent.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Agent {
    /// It was not searched for yet, or the interpreter is still starting.
    #[default]
    Unknown,
    /// It is loaded.
    Loaded,
    /// It is not loaded, for this reason.
    Absent(String),
}

/// The answer of a worker's agent.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentAnswer {
    /// Garbage was collected, and free memory was returned to the system.
    Collected {
        /// Private memory of the asked process before.
        before: Bytes,
        /// Its private memory afterwards.
        after: Bytes,
    },
    /// Nothing was done, because the worker serves a request.
    Busy,
    /// Whether the worker has taken the figures that a report compares with. If not, it was busy,
    /// or is still preparing.
    Base {
        /// It has taken them.
        taken: bool,
    },
    /// A tracing window is open.
    Opened,
    /// A tracing window is closed.
    Closed,
    /// The report was made and is kept.
    Reported {
        /// The id of the report.
        report: ReportId,
        /// Why it was made.
        cause: Cause,
        /// The report in one line: `native: 84M of 90M; native.py:9 load`.
        summary: String,
    },
    /// It could not be asked, or could not do it.
    Failed(String),
}

/// The counts of a worker.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Counts {
    /// Requests or tasks done, without those on ignored paths.
    pub done: u64,
    /// Internal errors of the agent, which the application does not see.
    pub errors: u64,
}

/// The resident memory of a worker, all its processes together.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Resident {
    /// Resident pages that are not backed by a file.
    pub anon: Bytes,
    /// The number of its processes.
    pub processes: u32,
}

/// What can be enforced on this machine.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Machine {
    /// What enforces a cap.
    pub caps: CapMechanism,
    /// Why caps are not enforced by a cgroup, and how to get one. `None`: they are.
    pub why_not: Option<String>,
    /// The kernel can notify the supervisor that a cgroup has reached a threshold.
    pub threshold: bool,
    /// A cgroup for all workers together can enforce the budget.
    pub budget: bool,
    /// A priority that was lowered can be raised again.
    pub priority: bool,
}

/// What enforces a cap.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum CapMechanism {
    /// cgroup v2 `memory.max`.
    CgroupV2,
    /// cgroup v1 `memory.limit_in_bytes`.
    CgroupV1,
    /// `RLIMIT_DATA`, for each process by itself.
    #[default]
    Rlimit,
}
