//! The inputs of a pool, and its actions.

use std::time::Duration;

use crate::{
    supervisor::event::{Ended, Oom},
    units::{Bytes, WorkerId},
};

/// A slot of the pool. All processes in it share one cgroup and one cap.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SlotId(pub u32);

/// A task's place in its source.
pub type Seq = u64;

/// How a worker ended, and how far it had come with its tasks.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerEnd {
    /// The worker.
    pub worker: WorkerId,
    /// Its exit status or signal.
    pub ended: Ended,
    /// Whether the kernel's OOM killer ended it.
    pub oom: Oom,
    /// Its peak memory.
    pub peak: Option<Bytes>,
    /// The task that it began last; 0: none.
    pub begun: Seq,
    /// The task that it finished last; 0: none.
    pub finished: Seq,
    /// The task that it received last, wholly or in part; 0: none.
    pub receiving: Seq,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The deadline of the pool has passed.
    Deadline,
    /// The memory that is available to the pool: before anything else, and when it changes.
    Available(Bytes),
    /// The template has imported everything.
    TemplateReady,
    /// It has imported everything, and workers cannot be forked from it. It must be started in
    /// another way.
    TemplateUnfit,
    /// The template could not start, or it has ended.
    TemplateFailed(TemplateEnd),
    /// Everything that the template started is gone.
    TemplateGone,
    /// A nest was forked and is in its group.
    NestUp(SlotId),
    /// A nest has ended, and no process is left in its cgroup.
    NestGone(SlotId, Oom),
    /// A nest, or a worker in it, could not be forked: a limit on processes or memory is reached.
    ForkRefused(SlotId, Option<WorkerId>),
    /// A worker has initialized, and takes tasks.
    Ready {
        /// The worker.
        worker: WorkerId,
        /// Its memory then, including what it shares with the template.
        base: Bytes,
    },
    /// The initializer of this worker failed. `WorkerEnded` follows.
    CouldNotStart(WorkerId),
    /// A task ended.
    Ended {
        /// Its worker.
        worker: WorkerId,
        /// The task.
        seq: Seq,
        /// Whether it returned.
        how: How,
        /// Its running time.
        micros: u32,
        /// The peak memory of its worker so far.
        peak: Bytes,
    },
    /// A task came to a worker after [`Action::Halt`], and was not begun.
    NotBegun {
        /// The worker.
        worker: WorkerId,
        /// The task.
        seq: Seq,
    },
    /// A worker has ended. All events from what it had sent came before.
    WorkerEnded(WorkerEnd),
    /// The memory of all processes in a slot.
    Sampled(SlotId, Bytes),
    /// A task came from the source.
    Came {
        /// The task.
        seq: Seq,
        /// Tasks with the same key are expected to need the same memory.
        key: u32,
    },
    /// The source has no more tasks.
    SourceEnded,
    /// Finish the tasks that have begun, and begin no others.
    Stop,
    /// Kill the running tasks as well.
    StopAtOnce,
}

/// Why the template has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TemplateEnd {
    /// It cannot be started, or an import raised. The next start would fail in the same way.
    Refused,
    /// It ended without a reason from itself.
    Died(Ended, Oom),
}

/// How a task ended, as its worker reports it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum How {
    /// It returned.
    Returned,
    /// It raised.
    Raised,
    /// It returned a value that cannot be encoded.
    Unserializable,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Start the template.
    StartTemplate,
    /// Let the template run its exit handlers and exit. `TemplateFailed` follows.
    QuitTemplate,
    /// Kill the template and everything that it started. `TemplateGone` follows.
    EndTemplate,
    /// Set the limit for all slots together.
    Budget(Option<Bytes>),
    /// Fork a nest into a cgroup with this cap. `NestUp`, `NestGone` or `ForkRefused` follows.
    RaiseNest(SlotId, Option<Bytes>),
    /// Fork a worker in this slot.
    Fork(SlotId, WorkerId),
    /// Give this task to that worker.
    Send(WorkerId, Seq),
    /// Let this worker exit when it has done the tasks that it was sent.
    Quit(WorkerId),
    /// Let this worker begin no further task. [`Event::NotBegun`] follows for each that it has.
    Halt(WorkerId),
    /// SIGKILL for all processes in a slot, including its nest.
    KillSlot(SlotId),
    /// SIGKILL for one worker.
    KillWorker(WorkerId),
    /// Suspend all workers in a slot (SIGSTOP).
    Suspend(SlotId),
    /// Resume them (SIGCONT).
    Resume(SlotId),
    /// Measure the memory of a slot. `Sampled` follows.
    Look(SlotId),
    /// Deliver the result that the worker has just sent.
    Deliver {
        /// The task.
        seq: Seq,
        /// Its worker.
        worker: WorkerId,
        /// The number of attempts, including this one.
        attempts: u32,
        /// How long the last attempt ran, measured here.
        ran: Duration,
    },
    /// Deliver this failure: no worker has sent a result.
    Fail {
        /// The task.
        seq: Seq,
        /// The worker that ended at it.
        worker: Option<WorkerId>,
        /// The reason.
        cause: Fate,
        /// The number of attempts.
        attempts: u32,
        /// The peak memory of its worker.
        peak: Option<Bytes>,
        /// How long the last attempt ran.
        ran: Duration,
    },
    /// A task that has begun gets no result, because the pool stops.
    Abandon(Seq),
    /// A worker ended while it started, without a reason from itself.
    StartDied(Ended, Oom),
    /// The template has ended like this. It is started again after this time.
    TemplateAnew(TemplateEnd, Duration),
    /// The pool is over.
    Over(Over),
}

/// Why a task failed without a result from its worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// Its worker reached its cap or the budget, and again in a worker of its own.
    Cap,
    /// Its worker reached its cap while it received the task, and again in a worker of its own.
    CapReceiving,
    /// It ran longer than its time limit.
    Timeout,
    /// Its worker ended.
    Died(Ended),
    /// No worker could be started.
    StartFailed,
}

/// How the pool ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Over {
    /// All tasks have their results.
    Done,
    /// It was told to stop.
    Stopped,
    /// It stopped at the first failure.
    Failed,
    /// No worker could be started.
    GaveUp,
}
