//! The inputs of a pool, and its actions.

use std::time::Duration;

use crate::{
    supervisor::{
        action::About,
        input::{AgentAnswer, Ended, Machine, Oom},
    },
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
    /// The task that it began last. 0: none.
    pub begun: Seq,
    /// The task that it finished last. 0: none.
    pub finished: Seq,
    /// The task that it received last, completely or in part. 0: none.
    pub receiving: Seq,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The deadline of the pool has passed.
    Deadline,
    /// What can be enforced on this machine. Comes first.
    Machine(Machine),
    /// The memory available to the pool. Comes first, and again when it changes.
    Available(Bytes),
    /// The template has imported everything.
    TemplateReady,
    /// The template has imported everything, but workers cannot be forked from it. It must be
    /// started in another way.
    TemplateUnfit,
    /// The template could not start, or it has ended.
    TemplateFailed(TemplateEnd),
    /// All processes that the template started have ended.
    TemplateGone,
    /// A fork server was forked and is in its cgroup.
    ForkServerUp(SlotId),
    /// A fork server has ended, and no process is left in its cgroup.
    ForkServerGone(SlotId, Oom),
    /// A fork server, or a worker of it, could not be forked: a limit on processes or memory is
    /// reached.
    ForkRefused(SlotId, Option<WorkerId>),
    /// A worker was forked, and starts.
    Forked {
        /// The worker.
        worker: WorkerId,
        /// Its process.
        pid: i32,
    },
    /// A worker has initialized, and takes tasks.
    Ready {
        /// The worker.
        worker: WorkerId,
        /// Its memory now, including what it shares with the template.
        base: Bytes,
    },
    /// The initializer of this worker failed. `WorkerEnded` follows.
    InitializerFailed(WorkerId),
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
    /// A worker received a task after [`Action::Halt`], and did not begin it.
    NotBegun {
        /// The worker.
        worker: WorkerId,
        /// The task.
        seq: Seq,
    },
    /// A worker has ended. The inputs from all that it had sent came before.
    WorkerEnded(WorkerEnd),
    /// A sample of the memory of all processes in a slot.
    Sampled(SlotId, Bytes),
    /// A task was read from the source.
    TaskArrived {
        /// The task.
        seq: Seq,
        /// Tasks with the same key are expected to need the same memory.
        key: u32,
    },
    /// A task of the source cannot be read, and has failed.
    Unreadable,
    /// The source has no more tasks.
    SourceEnded,
    /// An operator wants this worker replaced, after the tasks that it has.
    Recycle(WorkerId),
    /// An operator wants a memory report of this worker, after the tasks that it has.
    Report(WorkerId),
    /// A worker has answered [`Action::Report`].
    Reported {
        /// The worker.
        worker: WorkerId,
        /// Its answer.
        answer: AgentAnswer,
    },
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
    /// It ended without reporting an error.
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
    /// Start a fork server in a cgroup with this cap. `ForkServerUp`, `ForkServerGone` or
    /// `ForkRefused` follows.
    StartForkServer(SlotId, Option<Bytes>),
    /// Fork a worker in this slot.
    Fork(SlotId, WorkerId),
    /// Give this task to that worker.
    Send(WorkerId, Seq),
    /// Let this worker exit when it has done the tasks that it was sent.
    Quit(WorkerId),
    /// Let this worker make a memory report when it has done the tasks that it was sent.
    /// [`Input::Reported`] follows, unless the worker ends before.
    Report {
        /// The number of the report, the worker, and what is known of it.
        about: About,
        /// Maximum memory that the report may take.
        room: Bytes,
        /// Maximum time that it may take.
        time_box: Duration,
    },
    /// This worker has not sent its report in time. The requests that wait for it are told so.
    ForgetReport(WorkerId),
    /// Let this worker begin no further task. [`Input::NotBegun`] follows for each task that it
    /// has.
    Halt(WorkerId),
    /// Send SIGKILL to all processes in a slot, including its fork server.
    KillSlot(SlotId),
    /// Send SIGKILL to one worker.
    KillWorker(WorkerId),
    /// Suspend all workers in a slot (SIGSTOP).
    Suspend(SlotId),
    /// Resume them (SIGCONT).
    Resume(SlotId),
    /// Measure the memory of a slot. `Sampled` follows.
    SampleSlot(SlotId),
    /// Deliver the result that the worker has just sent.
    Deliver {
        /// The task.
        seq: Seq,
        /// Its worker.
        worker: WorkerId,
        /// The number of attempts, including this one.
        attempts: u32,
        /// How long the last attempt ran, measured by the pool.
        ran: Duration,
    },
    /// Deliver this failure, because no worker has sent a result.
    Fail {
        /// The task.
        seq: Seq,
        /// The worker that ended while it had the task.
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
    /// Report that a worker ended while it started, without reporting an error.
    WorkerDiedAtStart(Ended, Oom),
    /// Report that the template has ended like this, and that it is restarted after this time.
    TemplateRestarts(TemplateEnd, Duration),
    /// The pool is over.
    Over(Over),
}

/// Why a task failed without a result from its worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// Its worker reached its cap or the budget, also when the task was retried alone.
    Cap,
    /// Its worker reached its cap while it received the task, also when the task was retried alone.
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
