//! Everything that can be asked of the world.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::report::Cause;
use crate::units::{Bytes, ReportId, RequestId, RunId, Signal, WorkerId};

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Execute the command. Answered by `Started` or `StartFailed`; both later by `RunOver`.
    Start {
        /// Which start.
        run: RunId,
        /// A single program's process is this worker from its first instruction, with this cap. A
        /// server's own processes have none.
        worker: Option<(WorkerId, Option<Bytes>)>,
    },
    /// Watch this process of a server as this worker: its own group, its cap, its end.
    Adopt {
        /// Of which start.
        run: RunId,
        /// The name it has from now on.
        worker: WorkerId,
        /// Its process.
        pid: i32,
        /// Its cap.
        cap: Option<Bytes>,
    },
    /// Let the kernel hold this cap. Always the whole figure: what is charged elsewhere is already
    /// taken off.
    Cap {
        /// Whose.
        worker: WorkerId,
        /// `None` takes it away.
        cap: Option<Bytes>,
    },
    /// Let the kernel hold this budget over all workers and the server together.
    Budget {
        /// `None` takes it away.
        budget: Option<Bytes>,
    },
    /// Say `Tripped` once when the worker's group has grown by `room` from what it is now.
    /// Replaces an earlier wire.
    ArmWire {
        /// Whose.
        worker: WorkerId,
        /// How much it may grow.
        room: Bytes,
    },
    /// Look at a worker's memory. Answered by `Sampled` or `WorkerEnded`.
    Look {
        /// Whose.
        worker: WorkerId,
        /// How closely.
        how: Look,
    },
    /// Send a signal to the command's main process.
    SignalCommand {
        /// Of which start.
        run: RunId,
        /// Which.
        signal: Signal,
    },
    /// Send a signal to a worker's main process.
    SignalWorker {
        /// Which.
        worker: WorkerId,
        /// Which signal.
        signal: Signal,
    },
    /// SIGKILL a worker and all its helpers at once.
    KillWorker {
        /// Which.
        worker: WorkerId,
    },
    /// Send a signal to a process that outlived its worker, unless its pid belongs to another
    /// process by now.
    EndLeftover {
        /// Its pid, and its start time in clock ticks since boot.
        process: (i32, u64),
        /// Which signal.
        signal: Signal,
    },
    /// Let nobody connect any more, as the server is about to be told to stop. Answered by
    /// `BacklogEmpty` once it has accepted all that had connected, if ever.
    DrainBacklog {
        /// Of which start.
        run: RunId,
    },
    /// SIGKILL all that this run started.
    KillRun {
        /// Which start.
        run: RunId,
    },
    /// Whom the scheduler prefers.
    Prioritize {
        /// Whose.
        worker: WorkerId,
        /// How.
        priority: Priority,
    },
    /// Look whether the worker has the agent. Answered by `AgentFound`.
    FindAgent {
        /// Which.
        worker: WorkerId,
    },
    /// Ask a worker's agent. Answered by `Said`, if ever.
    AskAgent {
        /// Which.
        worker: WorkerId,
        /// What.
        ask: AgentAsk,
    },
    /// Note what a worker runs just now, by the C-level handler that works even where no Python
    /// does. Not answered: it goes into a report that is kept later.
    NoteStack {
        /// Which.
        worker: WorkerId,
        /// What it holds now.
        memory: Bytes,
    },
    /// Keep a report of what is known from outside: the worker has ended or does not answer.
    /// Answered by `Said` if it lives.
    KeepReport {
        /// Its figures.
        about: About,
        /// Why there is nothing from inside.
        silent: String,
    },
    /// Read what all workers have counted. Answered by `Counted` for each that counts.
    ReadCounts,
    /// Try whether the installed binary can take over. Answered by `UpgradeChecked`.
    CheckUpgrade {
        /// For whom.
        request: RequestId,
    },
    /// Let it take over, as soon as the answer to who asked is on its way.
    Upgrade,
    /// Keep this where it can be read when we are gone, in place of what was there. The last one
    /// comes before `Exit`.
    LastWords {
        /// The text; empty: nothing.
        text: String,
    },
    /// Tell the service manager.
    Notify(Notice),
    /// Answer an operator.
    Reply {
        /// Which request.
        request: RequestId,
        /// The answer.
        answer: Answer,
    },
    /// The service is over; end with this status (DESIGN §7).
    Exit {
        /// The exit status.
        status: i32,
    },
}

/// What an agent is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentAsk {
    /// Collect garbage and give free memory back.
    Collect,
    /// Open a tracing window: allocations from here on are attributed.
    Open {
        /// The process may take so much more.
        room: Bytes,
    },
    /// Close it.
    Close,
    /// Say why you are fat.
    Report {
        /// Figures that the report begins with.
        about: About,
        /// The process may take so much more.
        room: Bytes,
        /// It may take so long.
        time_box: Duration,
    },
}

/// Whom a report is about, and its figures as they are seen from outside.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct About {
    /// The id it will have.
    pub report: ReportId,
    /// Whose.
    pub worker: WorkerId,
    /// Its process.
    pub pid: i32,
    /// Why it is taken: `ceiling`, `cap`, `request` ...
    pub cause: Cause,
    /// What it holds now.
    pub private: Bytes,
    /// Resident pages.
    pub rss: Bytes,
    /// After warm-up.
    pub baseline: Option<Bytes>,
    /// Number of its processes.
    pub processes: u32,
}

/// How closely to look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Look {
    /// A few microseconds: resident, anonymous and shared pages, the group's charge.
    Cheap,
    /// About 20 ms a gigabyte, and the target stalls for a part of it: private and proportional.
    Exact {
        /// How far the private memory may be from the truth.
        within: Bytes,
    },
}

/// Whom the scheduler prefers.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Priority {
    /// Boots on what the others leave.
    Low,
    /// As it was.
    Normal,
}

/// What the service manager is told (sd_notify(3)).
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
    /// `EXTEND_TIMEOUT_USEC=`: a start, reload or stop goes on for so long.
    Extend(Duration),
}

/// An operator's answer, given when the wish has come true or was refused.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It is done; what was done.
    Done(String),
    /// It is not going to be done; why.
    Refused(String),
    /// The report that was asked for is kept.
    Reported(ReportId),
    /// There is no such worker.
    Unknown(String),
}
