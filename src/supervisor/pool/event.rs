//! What a pool hears, and what it wants.

use std::time::Duration;

use crate::{
    supervisor::event::{Ended, Oom},
    units::{Bytes, WorkerId},
};

/// A slot of the pool: what lives in it shares a group and a cap.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SlotId(pub u32);

/// A task's place in its source.
pub type Seq = u64;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The deadline that was asked for has passed.
    Deadline,
    /// What the pool may have; before anything else, and when it changes.
    Available(Bytes),
    /// The template has imported everything.
    TemplateReady,
    /// It has, and workers cannot be forked from it: it is to be started in another way.
    TemplateUnfit,
    /// It could not, or it has ended.
    TemplateFailed(TemplateEnd),
    /// Everything that the template started is gone.
    TemplateGone,
    /// A nest was forked and is in its group.
    NestUp(SlotId),
    /// A nest is gone; nobody in its group lives on.
    NestGone(SlotId, Oom),
    /// A nest, or this worker of it, could not be forked: the system has no more processes or no
    /// memory for us.
    ForkRefused(SlotId, Option<WorkerId>),
    /// A worker was forked.
    Born {
        /// Where.
        slot: SlotId,
        /// As it was asked for.
        worker: WorkerId,
    },
    /// It has imported and initialized all.
    Ready {
        /// Which.
        worker: WorkerId,
        /// What it held then, the template's share included.
        base: Bytes,
    },
    /// Its initializer failed. Its end follows.
    CouldNotStart(WorkerId),
    /// A task ended.
    Ended {
        /// At whose hands.
        worker: WorkerId,
        /// Which.
        seq: Seq,
        /// It returned; else it raised, or what it returned could not be told.
        how: How,
        /// For how long it ran.
        micros: u32,
        /// The most that its worker held up to now.
        peak: Bytes,
    },
    /// A task came to a worker after [`Action::Halt`], and was not begun.
    NotBegun {
        /// At whose hands.
        worker: WorkerId,
        /// Which.
        seq: Seq,
    },
    /// A worker is gone. All that it had said was handed in before.
    WorkerEnded {
        /// Which.
        worker: WorkerId,
        /// How.
        ended: Ended,
        /// Whether it was the kernel's OOM killer.
        oom: Oom,
        /// The most that it held.
        peak: Option<Bytes>,
        /// The task that it began last; 0: none.
        begun: Seq,
        /// The task that it finished last; 0: none.
        finished: Seq,
        /// The task of which it had read a part last; 0: none.
        receiving: Seq,
    },
    /// What all in a slot hold.
    Sampled(SlotId, Bytes),
    /// A task came from the source.
    Came {
        /// Which.
        seq: Seq,
        /// Whose like it is.
        key: u32,
    },
    /// The source has no more.
    SourceEnded,
    /// Finish what has begun, begin nothing else.
    Stop,
    /// End what is under way as well.
    StopAtOnce,
}

/// Why there is no template any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TemplateEnd {
    /// It cannot be started, or an import raised: it would do so again.
    Refused,
    /// It ended, and did not say why.
    Died(Ended, Oom),
}

/// How a task ended in its worker's words.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum How {
    /// It returned.
    Returned,
    /// It raised.
    Raised,
    /// What it returned cannot be encoded.
    Unserializable,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Start the template.
    StartTemplate,
    /// Tell the template to run its exit handlers; `TemplateFailed` follows when it has ended.
    QuitTemplate,
    /// End everything at once; `TemplateGone` follows.
    EndTemplate,
    /// Hold this budget over all.
    Budget(Option<Bytes>),
    /// Fork a nest into a group with this cap. `NestUp` or `NestGone` follows.
    RaiseNest(SlotId, Option<Bytes>),
    /// Fork a worker in this slot.
    Fork(SlotId, WorkerId),
    /// Give this task to that worker.
    Send(WorkerId, Seq),
    /// No more tasks come; it may end.
    Quit(WorkerId),
    /// It begins no other task of those that it has: each of them is [`Event::NotBegun`].
    Halt(WorkerId),
    /// SIGKILL for all that lives in a slot, its nest included.
    KillSlot(SlotId),
    /// SIGKILL for one worker.
    KillWorker(WorkerId),
    /// Stop all in a slot where it is (SIGSTOP).
    Suspend(SlotId),
    /// Let it go on.
    Resume(SlotId),
    /// Look at what a slot holds.
    Look(SlotId),
    /// Deliver what the worker has just said of this task.
    Deliver {
        /// Which.
        seq: Seq,
        /// Whose words.
        worker: WorkerId,
        /// How often it was begun.
        attempts: u32,
        /// For how long it ran in its last attempt, as seen from here.
        ran: Duration,
    },
    /// There are no words of a worker: deliver this.
    Fail {
        /// Which.
        seq: Seq,
        /// Whose hands it died in, if any.
        worker: Option<WorkerId>,
        /// Why.
        cause: Fate,
        /// How often it was begun.
        attempts: u32,
        /// The most that its worker held.
        peak: Option<Bytes>,
        /// For how long it ran in its last attempt.
        ran: Duration,
    },
    /// A task that was begun has no result, and shall have none: the pool was told to stop.
    Abandon(Seq),
    /// Say this.
    Warn(String),
    /// A worker ended while it started, and did not say why.
    StartDied(Ended, Oom),
    /// The template has ended like this; it is started anew after this time.
    TemplateAnew(TemplateEnd, Duration),
    /// The pool is over.
    Over(Over),
}

/// Why a task has no answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// Its worker met its cap, or the budget, and did so again when it was alone.
    Cap,
    /// Its worker met its cap while it received the task, and did so again when it was alone.
    CapReceiving,
    /// It ran for too long.
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
    /// The first failure ended it.
    Failed,
    /// No worker could be started.
    GaveUp,
}
