//! Everything that can be asked of the world.

use crate::units::{Bytes, RequestId, RunId, Signal, WorkerId};

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

/// How closely to look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Look {
    /// A few microseconds: resident and anonymous pages, the group's charge.
    Cheap,
    /// About 20 ms a gigabyte, and the target stalls for a part of it: private and proportional.
    Exact,
}

/// Whom the scheduler prefers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
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
    Extend(std::time::Duration),
}

/// An operator's answer, given when the wish has come true or was refused.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It is done; what was done.
    Done(String),
    /// It is not going to be done; why.
    Refused(String),
    /// There is no such worker.
    Unknown(String),
}
