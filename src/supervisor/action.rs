//! The actions of the decider: everything that it can ask its driver to do.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::servers::profile::Profile;
use crate::supervisor::cause::Cause;
use crate::units::{Bytes, ReportId, RequestId, RunId, Signal, WorkerId};

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Execute the command. Answered by `Started` or `StartFailed`, and later by `RunOver`.
    Start {
        /// The run of the command.
        run: RunId,
        /// For a single program: the worker that its process is, with this cap from its first
        /// instruction. `None`: the command is a server, which has no cap.
        worker: Option<(WorkerId, Option<Bytes>)>,
    },
    /// Adopt this process of a server as a worker: give it its own cgroup and its cap, and watch
    /// for its end.
    Adopt {
        /// The run of the command.
        run: RunId,
        /// Its id from now on.
        worker: WorkerId,
        /// Its process.
        pid: i32,
        /// Its cap.
        cap: Option<Bytes>,
    },
    /// The command, which was one worker until now, is a server whose children are the workers. It
    /// loses its cap.
    TreatAsServer {
        /// The worker that the command was.
        worker: WorkerId,
        /// The server.
        server: &'static Profile,
    },
    /// Let the kernel enforce this limit for a worker. Pages that are charged elsewhere are already
    /// subtracted from its cap.
    Cap {
        /// The worker.
        worker: WorkerId,
        /// The limit. `None` removes it.
        cap: Option<Bytes>,
    },
    /// Let the kernel enforce this budget for all workers and the server together.
    Budget {
        /// The budget. `None` removes it.
        budget: Option<Bytes>,
    },
    /// Send `ThresholdReached` once when the charge of the worker's cgroup has grown by `room`.
    /// Replaces an earlier threshold.
    SetThreshold {
        /// The worker.
        worker: WorkerId,
        /// How much the charge may grow from now.
        room: Bytes,
    },
    /// Sample a worker's memory. Answered by `Sampled` or `WorkerEnded`.
    Sample {
        /// The worker.
        worker: WorkerId,
        /// The kind of sample.
        how: SampleKind,
    },
    /// Find the largest processes of a worker. Answered by `ProcessesListed`.
    ListProcesses {
        /// The worker.
        worker: WorkerId,
    },
    /// Send a signal to the command's main process.
    SignalCommand {
        /// The run of the command.
        run: RunId,
        /// The signal to send.
        signal: Signal,
    },
    /// Send a signal to a worker's main process.
    SignalWorker {
        /// The worker.
        worker: WorkerId,
        /// The signal to send.
        signal: Signal,
    },
    /// Send SIGKILL to a worker and all its child processes at once.
    KillWorker {
        /// The worker.
        worker: WorkerId,
    },
    /// Send a signal to a process that outlived its worker, unless its pid belongs to another
    /// process by now.
    EndLeftover {
        /// Its pid, and its start time in clock ticks since boot.
        process: (i32, u64),
        /// The signal to send.
        signal: Signal,
    },
    /// Accept no new connections, because the server will be stopped soon. Answered by
    /// `BacklogEmpty` once the server has accepted all waiting connections, which may never happen.
    DrainBacklog {
        /// The run of the command.
        run: RunId,
    },
    /// Send SIGKILL to all processes of this run.
    KillRun {
        /// The run of the command.
        run: RunId,
    },
    /// Set the CPU priority of a worker.
    Prioritize {
        /// The worker.
        worker: WorkerId,
        /// Its priority.
        priority: Priority,
    },
    /// Find out whether the worker has the agent. Answered by `AgentFound`.
    FindAgent {
        /// The worker.
        worker: WorkerId,
    },
    /// Send a request to a worker's agent. Answered by `AgentAnswered`, unless the worker ends or
    /// does not respond.
    AskAgent {
        /// The worker.
        worker: WorkerId,
        /// The request.
        ask: AgentAsk,
    },
    /// Remove a worker's request for a report after its drain, because the worker should exit
    /// without delay. An answer may come nevertheless.
    WithdrawReport {
        /// The worker.
        worker: WorkerId,
    },
    /// Record the current stack of a worker. The handler is written in C and works even if no
    /// Python code can run. Not answered: the stack becomes a part of a later report.
    NoteStack {
        /// The worker.
        worker: WorkerId,
        /// Its memory now.
        memory: Bytes,
    },
    /// Make and keep a report from outside, because the worker has ended or its agent cannot
    /// answer. Answered by `AgentAnswered` if the worker is alive.
    KeepReport {
        /// The worker and its figures.
        about: About,
        /// Why the agent does not make the report.
        silent: String,
    },
    /// Read the counts of all workers. Answered by `Counted` for each worker that counts.
    ReadCounts,
    /// Read the counts by route and the memory of all workers. Answered by `RoutesRead` for each
    /// worker that counts.
    ReadRoutes,
    /// Check whether the newly installed binary can take over. Answered by `UpgradeChecked`.
    CheckUpgrade {
        /// The operator's request.
        request: RequestId,
    },
    /// Let the new binary take over as soon as the answer to the operator has been sent.
    Upgrade,
    /// Write this termination message in place of the earlier one. The final one comes before
    /// `Exit`.
    TerminationMessage {
        /// The text. Empty: no message.
        text: String,
    },
    /// Notify the service manager.
    Notify(Notice),
    /// Answer an operator.
    Reply {
        /// The operator's request.
        request: RequestId,
        /// The answer.
        answer: Answer,
    },
    /// The service is over. Exit with this status (DESIGN §7).
    Exit {
        /// The exit status.
        status: i32,
    },
}

/// A request to a worker's agent.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentAsk {
    /// Collect garbage and return free memory to the system.
    Collect,
    /// Take the figures that a report compares with, if the worker is idle.
    Base,
    /// Open a window of tracing, in which allocations are attributed to source lines.
    Open {
        /// Also take the figures that a report compares with. This interrupts the worker.
        base: bool,
        /// How much more memory the process may allocate.
        room: Bytes,
    },
    /// Close the window.
    Close,
    /// Report why the memory grew.
    Report {
        /// The figures at the start of the report.
        about: About,
        /// How much more memory the process may allocate.
        room: Bytes,
        /// The time limit of the report.
        time_box: Duration,
        /// When the worker makes it.
        when: ReportWhen,
    },
}

impl AgentAsk {
    /// Whether the worker looks for the request itself when it has answered its last request. No
    /// signal is sent for it.
    pub const fn waits_for_drain(&self) -> bool {
        matches!(
            self,
            Self::Report {
                when: ReportWhen::AfterDrain,
                ..
            }
        )
    }
}

/// When a worker makes a report.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReportWhen {
    /// At once. This delays the requests that it serves.
    Now,
    /// At once, if it serves no request.
    Idle,
    /// When it has answered its last request, before it exits.
    AfterDrain,
}

/// The subject of a report, with its figures as seen from outside.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct About {
    /// The id of the report.
    pub report: ReportId,
    /// The worker.
    pub worker: WorkerId,
    /// Its process.
    pub pid: i32,
    /// Why the report is made: `ceiling`, `cap`, `request` ...
    pub cause: Cause,
    /// Its memory now, by the configured measure.
    pub private: Bytes,
    /// Its resident pages.
    pub rss: Bytes,
    /// Its memory after warm-up.
    pub baseline: Option<Bytes>,
    /// Number of its processes.
    pub processes: u32,
}

/// The kind of a sample of memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SampleKind {
    /// Resident, anonymous and shared pages, and the charge of the cgroup. Takes a few
    /// microseconds.
    Cheap,
    /// Also private and proportional memory. Takes about 20 ms per gigabyte, and stalls the process
    /// for a part of it.
    Exact {
        /// By how much the private memory may be wrong.
        within: Bytes,
    },
}

/// The CPU priority of a worker.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Priority {
    /// The worker boots with the CPU time that other processes do not use.
    Low,
    /// The priority that it had at its start.
    Normal,
}

/// A notification to the service manager (sd_notify(3)).
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// `READY=1`: start-up, or a reload, is over.
    Ready,
    /// `RELOADING=1`.
    Reloading,
    /// `STOPPING=1`.
    Stopping,
    /// `STATUS=`.
    Status(String),
    /// `EXTEND_TIMEOUT_USEC=`: a start, reload or stop takes up to this long.
    Extend(Duration),
}

/// The answer to an operator, given when the request was carried out or refused.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The request was carried out. The text says what was done.
    Done(String),
    /// The request is refused for this reason.
    Refused(String),
    /// The requested report is kept under this id.
    Reported(ReportId),
    /// There is no such worker.
    Unknown(String),
}
