//! Everything that can have happened, the passing of time included.
//!
//! Late news is normal: an event about a worker or a run that is over is ignored.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::report::Cause;
use crate::units::{Bytes, ReportId, RequestId, RunId, Signal, Timestamp, WorkerId};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The deadline that was asked for has passed.
    Deadline,
    /// What this service may have, read at start and again whenever it changes: the smallest limit
    /// up its own cgroup path, else the machine's RAM.
    Available(Bytes),
    /// What this machine lets us enforce was found out. Comes once, before the first start.
    Machine(Machine),

    /// The command is executed. A single program's process is its worker.
    Started {
        /// Which start.
        run: RunId,
        /// The process that executes it.
        pid: i32,
    },
    /// The command could not be executed.
    StartFailed {
        /// Which start.
        run: RunId,
        /// `errno` of execve(2) or of what came before it.
        errno: i32,
        /// What was tried, and why it failed.
        error: String,
    },
    /// The service answers by the sign that was wished for ([`super::spec::ReadyWhen`]).
    Answers {
        /// Which start.
        run: RunId,
    },
    /// Nobody waits any more to be accepted by the command, as far as can be seen.
    BacklogEmpty {
        /// Of which start.
        run: RunId,
    },
    /// The command's main process ended.
    CommandEnded {
        /// Which start.
        run: RunId,
        /// How.
        ended: Ended,
        /// Whether the kernel killed a server's main process for memory. For a single program
        /// `WorkerEnded` says it.
        oom: Oom,
        /// A further master that goes on serving (gunicorn's USR2): the run goes on with it.
        successor: Option<i32>,
    },
    /// Nothing that this run started is left.
    RunOver {
        /// Which start.
        run: RunId,
    },
    /// So many masters of one server serve now (two during gunicorn's USR2).
    Masters {
        /// Which start.
        run: RunId,
        /// How many.
        count: u32,
    },

    /// A worker of a server was seen for the first time. Several come oldest first.
    WorkerSeen {
        /// Of which start.
        run: RunId,
        /// Its process.
        pid: i32,
    },
    /// What was taken for a worker is none (it executed another program, or never held a
    /// heartbeat): it is the server's own helper and no longer watched as a worker.
    NoWorker {
        /// Which.
        worker: WorkerId,
    },
    /// A child of the server's main process that is not a worker: gunicorn's dirty arbiter, a
    /// resource tracker.
    ServerHelper(
        /// Its pid.
        i32,
        /// Its command line, for people.
        String,
    ),
    /// A command that counts as one worker has started a known server.
    ServerFound {
        /// The pid of the server's main process.
        pid: i32,
        /// The server's name, as `--server` takes it.
        server: &'static str,
    },
    /// All processes that outlived the worker which started them. Comes again and again while
    /// there are any, and once more with none when the last has ended.
    LeftBehind(Vec<Leftover>),
    /// A worker has begun to serve.
    WorkerReady {
        /// Which.
        worker: WorkerId,
    },
    /// A worker's process is gone.
    WorkerEnded {
        /// Which.
        worker: WorkerId,
        /// How.
        ended: Ended,
        /// What the kernel says of its memory.
        oom: Oom,
        /// After a kill at its cap: the highest charge of its group. After any other end: the
        /// highest number of its resident pages. `None` where the kernel does not keep it.
        peak: Option<Bytes>,
    },
    /// The kernel killed a child process of a worker, and not the worker itself.
    HelperKilled {
        /// Of which worker.
        worker: WorkerId,
        /// At whose limit.
        oom: Oom,
        /// The rest of the worker is killed with it.
        whole: bool,
    },

    /// The kernel holds a worker to a higher limit than we asked for. The worker already holds more
    /// memory than we asked for, and the kernel cannot reclaim it.
    CapHigher {
        /// Whose.
        worker: WorkerId,
        /// The limit in force.
        limit: Bytes,
    },
    /// A look at a worker's memory.
    Sampled {
        /// Whose.
        worker: WorkerId,
        /// What was seen.
        sample: Sample,
    },
    /// Its group has grown by what the trip wire allowed. Says no more than: look now.
    Tripped {
        /// Whose.
        worker: WorkerId,
    },
    /// All groups of the service together. Comes now and then, where they can be read.
    Held {
        /// What they are charged with and cannot give back: anonymous pages, shared memory, tmpfs.
        held: Bytes,
    },
    /// What the budget is charged with beside the memory of workers. Comes where it may be large.
    Contents(Contents),
    /// Processes of the service have waited for memory for a part of the last seconds: an early
    /// sign that a limit is near. Says no more than: look now.
    Pressed,
    /// The server's own processes, workers excluded.
    ServerSampled {
        /// Their private memory.
        private: Bytes,
    },

    /// What the group above us that is nearest to its limit is charged with, page cache that can be
    /// had back left out. Above the limit the kernel kills: all of a container, as Kubernetes has
    /// it.
    Charged {
        /// So much.
        used: Bytes,
        /// Its limit.
        of: Bytes,
    },

    /// It was looked for the agent in a worker.
    AgentFound {
        /// In which.
        worker: WorkerId,
        /// What was found.
        agent: Agent,
        /// The worker runs Python, so its agent should be there.
        expected: bool,
    },
    /// What a worker was asked is answered, or will not be. One answer to each
    /// [`super::action::Action::AskAgent`], unless the worker ends or stays silent.
    Said {
        /// Which.
        worker: WorkerId,
        /// What it said.
        said: Said,
    },
    /// What a worker has counted since its birth, all its processes together.
    Counted {
        /// Which.
        worker: WorkerId,
        /// So much.
        counts: Counts,
    },

    /// We were sent a signal.
    Signalled(Signal),
    /// An operator asks.
    Asked {
        /// To be answered with [`super::action::Action::Reply`], exactly once.
        request: RequestId,
        /// What for.
        ask: Ask,
    },

    /// The binary that is to take over was tried.
    UpgradeChecked {
        /// For whom.
        request: RequestId,
        /// Its version, or why it will not do.
        verdict: Result<String, String>,
    },

    /// Workers are capped but not watched, because we have as many files open as we may have.
    Unwatched {
        /// Their number; 0: all workers are watched again.
        workers: u32,
        /// The limit on open files.
        limit: u64,
    },
    /// Something that was asked of the world did not work. Nothing else follows from the action.
    Failed {
        /// What was tried on which object, and why it failed.
        what: String,
        /// The worker it was for.
        worker: Option<WorkerId>,
        /// Which promise is off because of it.
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
    /// The pid of the topmost leftover that it descends from; its own if it is the topmost.
    pub tree: i32,
    /// Its command line, for people.
    pub command: String,
    /// Its anonymous pages.
    pub memory: Bytes,
    /// How long it has used no CPU, as far as it was watched.
    pub idle: Duration,
}

/// What a failed action was for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// A cap.
    Cap,
    /// The budget.
    Budget,
    /// A trip wire.
    Wire,
    /// A signal or a kill.
    Signal,
    /// A look at memory.
    Look,
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
    /// It is gone, and this kernel does not tell us how (not our child, and neither
    /// `PIDFD_GET_INFO` of Linux 6.15 nor the process connector is there).
    Unseen,
}

/// What the kernel's counters say about a death.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Oom {
    /// The OOM killer was not there.
    #[default]
    No,
    /// It came because of this worker's own cap.
    Cap,
    /// It came because of the budget.
    Budget,
    /// It came because of a limit further up, or because the machine was full.
    Elsewhere,
}

/// A look at a worker's memory, all its processes together.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Sample {
    /// When the figures were read.
    pub at: Timestamp,
    /// Resident pages (`/proc/PID/statm`).
    pub rss: Bytes,
    /// Resident pages that no file backs (`statm`: resident less shared).
    pub anon: Bytes,
    /// Resident pages of shared memory, named or not (`RssShmem`).
    pub shmem: Bytes,
    /// What its cgroup is charged with, page cache included, where it has one.
    pub cgroup: Option<Bytes>,
    /// What its cgroup is charged with and the kernel cannot take back, where that was read.
    pub held: Option<Bytes>,
    /// Only in an exact look.
    pub exact: Option<Exact>,
    /// How many processes it is.
    pub processes: u32,
}

/// What fills the budget beside the memory of processes.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Contents {
    /// Files in a tmpfs, shared memory and memfds: they may outlive all processes.
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

/// A file whose pages are memory.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TmpfsFile {
    /// Its path.
    pub path: String,
    /// Its size in memory.
    pub size: Bytes,
}

/// The dear figures (`/proc/PID/smaps_rollup` and `smaps`).
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Exact {
    /// What its end would give back: anonymous pages, shared memory without a name, swap and huge
    /// pages. No pages of files.
    pub private: Bytes,
    /// Resident anonymous pages that no other process shares; never an overestimate.
    pub anon: Bytes,
    /// Private pages and its share of the shared ones, and swap.
    pub pss: Bytes,
    /// As `private`, with a share of those pages that other processes share: for a worker that
    /// shares none with others, what the end of all its processes would give back. `None` where the
    /// kernel does not tell.
    pub share: Option<Bytes>,
    /// Anonymous pages charged to its own cgroup, for a worker that was moved into its cgroup: its
    /// earlier pages are charged elsewhere.
    pub charged: Option<Bytes>,
    /// How long the look took; the target was stalled for a part of it.
    pub took: Duration,
}

/// Whether a worker can be asked.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Agent {
    /// Nobody has looked yet, or the interpreter is still starting.
    #[default]
    Unknown,
    /// It is there.
    Loaded,
    /// It is not, and why.
    Absent(String),
}

/// What a worker's agent said.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Garbage was collected and free memory given back.
    Collected {
        /// Private memory of the asked process before.
        before: Bytes,
        /// And after.
        after: Bytes,
    },
    /// A tracing window is open.
    Opened,
    /// A tracing window is closed.
    Closed,
    /// The report is kept under its id. What it says in one line.
    Reported {
        /// Which.
        report: ReportId,
        /// Why it was taken.
        cause: Cause,
        /// `native: 84M of 90M; native.py:9 load`.
        summary: String,
    },
    /// It could not be asked, or could not do it.
    Failed(String),
}

/// What a worker has counted.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Counts {
    /// Requests or tasks done, those on ignored paths left out.
    pub done: u64,
    /// Exceptions inside the agent, swallowed.
    pub errors: u64,
}

/// What this machine lets us enforce.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Machine {
    /// What holds a cap.
    pub caps: CapMechanism,
    /// Why it is not a cgroup, if it is not, and how to get one.
    pub why_not: Option<String>,
    /// There is a trip wire.
    pub wire: bool,
    /// A group that holds all workers together can carry the budget.
    pub budget: bool,
    /// A priority that was lowered can be raised again.
    pub priority: bool,
}

/// What holds a cap.
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

/// What an operator asks.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// Replace this worker.
    Recycle(WorkerId),
    /// Replace all that live now, one after the other.
    RecycleAll,
    /// The same, for new code.
    Reload,
    /// Say why this worker is fat.
    Report(WorkerId),
    /// Go on as the binary that is installed now.
    Upgrade,
    /// End the service.
    Stop(Stop),
}

/// How a service ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// What is in flight is finished first.
    Graceful,
    /// At once.
    Now,
}
