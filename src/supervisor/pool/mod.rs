//! A pool: workers that are fed with tasks. Events in; actions and a deadline out.
//!
//! A template process imports everything once. Each slot has a *nest*, forked from the template
//! into the slot's group, which forks the slot's workers, so that they are born under their cap.
//! A worker has a window of tasks under way; it says what it begins and ends in a page that
//! outlives it, so that its death is blamed on the one task that it was at.
//!
//! The promise: each task that came is delivered or failed exactly once, unless the pool was told
//! to stop before its turn came, or before it was known how the task ends: then it has no result.

mod deaths;
mod dispatch;
pub mod event;
mod life;
mod memory;
mod refusals;
pub mod spec;
mod worker;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use event::{Action, Event, Over, Seq, SlotId};
use spec::PoolSpec;
use worker::{Progress, Slot, Stage, Ticket, Worker};

use crate::{
    supervisor::report::Limits,
    units::{Bytes, Timestamp, WorkerId},
};

/// So many starts in a row may fail before the pool is given up.
const STARTS_MAX: u32 = 3;
/// So many workers in a row may die while they start.
const DEATHS_MAX: u32 = 10;
/// A worker that was told to go has so long for its exit handlers.
const LEAVE: Duration = Duration::from_secs(10);
/// A task whose result was lost this often is blamed for it.
const LOST_MAX: u32 = 5;

/// The whole decision.
#[derive(Debug)]
pub struct Pool {
    spec: PoolSpec,
    limits: Limits,
    phase: Phase,
    slots: BTreeMap<SlotId, Slot>,
    workers: BTreeMap<WorkerId, Worker>,
    next_worker: WorkerId,
    /// Tasks that came and were not begun, the retried ones first.
    queue: VecDeque<Ticket>,
    /// Tasks that are tried again alone.
    alone: VecDeque<Ticket>,
    source_ended: bool,
    /// It was told to stop, or to end by the first failure.
    stop: Option<Over>,
    /// Mean time of a task, in microseconds; `None` before the first.
    mean_micros: Option<f64>,
    /// What tasks of a key needed at most.
    needs: BTreeMap<u32, Bytes>,
    starts_failed: u32,
    deaths: u32,
    template_failures: u32,
    /// A template was ready once.
    has_imported: bool,
    actions: VecDeque<Action>,
    /// Something has changed that may let a task be sent.
    dispatch: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// What the pool may have is not known.
    Idle,
    Starting,
    /// The template could not start; it is started again then.
    Resting(Timestamp),
    Running,
    /// All is done, and the workers have left: so does the template, until then at the latest.
    Leaving(Over, Timestamp),
    /// The template has ended or is to end; all that it started goes.
    Clearing(Next),
    Over,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Next {
    Restart,
    /// After this time.
    RestartAfter(Duration),
    End(Over),
}

impl Pool {
    /// A pool that has not begun.
    pub fn new(spec: PoolSpec) -> Self {
        let slots = (0..spec.workers)
            .map(|slot| (SlotId(slot), Slot::default()))
            .collect();
        Self {
            spec,
            limits: Limits::default(),
            phase: Phase::Idle,
            slots,
            workers: BTreeMap::new(),
            next_worker: WorkerId::FIRST,
            queue: VecDeque::new(),
            alone: VecDeque::new(),
            source_ended: false,
            stop: None,
            mean_micros: None,
            needs: BTreeMap::new(),
            starts_failed: 0,
            deaths: 0,
            template_failures: 0,
            has_imported: false,
            actions: VecDeque::new(),
            dispatch: false,
        }
    }

    /// Takes in what happened at `now`.
    pub fn handle_event(&mut self, now: Timestamp, event: Event) {
        match event {
            Event::Deadline => {}
            Event::Available(bytes) => self.on_available(bytes),
            Event::TemplateReady => self.on_template_ready(),
            Event::TemplateUnfit => self.on_template_unfit(),
            Event::TemplateFailed(end) => self.on_template_failed(end),
            Event::TemplateGone => self.on_template_gone(now),
            Event::NestUp(slot) => self.on_nest_up(now, slot),
            Event::NestGone(slot, oom) => self.on_nest_gone(now, slot, oom),
            Event::ForkRefused(slot, worker) => self.on_fork_refused(now, slot, worker),
            Event::Born { .. } => {}
            Event::Ready { worker, base } => self.on_ready(now, worker, base),
            Event::CouldNotStart(worker) => {
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.could_not_start = true;
                }
            }
            Event::Ended {
                worker,
                seq,
                how,
                micros,
                peak,
            } => self.on_ended(now, (worker, seq), (how, micros, peak)),
            Event::NotBegun { worker, seq } => self.on_not_begun(worker, seq),
            Event::WorkerEnded {
                worker,
                ended,
                oom,
                peak,
                begun,
                finished,
                receiving,
            } => {
                let at = Progress {
                    begun,
                    finished,
                    receiving,
                };
                self.on_worker_ended(now, worker, (ended, oom, peak), at);
            }
            Event::Sampled(slot, memory) => self.on_sampled(now, slot, memory),
            Event::Came { seq, key } => {
                self.queue.push_back(Ticket::new(seq, key));
                self.dispatch = true;
            }
            Event::SourceEnded => {
                self.source_ended = true;
                self.dispatch = true;
            }
            Event::Stop => self.stop(Over::Stopped),
            Event::StopAtOnce => self.stop_at_once(),
        }
        self.on_time(now);
    }

    /// What to do next, oldest first.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// So many more tasks are wanted of the source now.
    pub fn wants(&self) -> usize {
        if self.stop.is_some() || self.source_ended || self.phase != Phase::Running {
            return 0;
        }
        let ahead = self.window().saturating_mul(self.slots.len()).max(2) * 2;
        ahead.saturating_sub(self.queue.len().saturating_add(self.alone.len()))
    }

    /// So many tasks may be under way or at hand at a time: what an executor may hand over.
    pub fn credit(&self) -> usize {
        let slots = self.slots.len();
        match self.window() {
            1 => slots.saturating_add(1),
            window => window.saturating_mul(slots).saturating_mul(8),
        }
    }

    /// Tasks that are at workers' hands.
    pub fn under_way(&self) -> usize {
        self.workers
            .values()
            .map(|worker| worker.window.len())
            .sum()
    }

    /// Workers that are at a task.
    pub fn busy(&self) -> usize {
        let is_busy = |worker: &&Worker| !worker.window.is_empty();
        self.workers.values().filter(is_busy).count()
    }

    /// What holds.
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// When to hand in [`Event::Deadline`] at the latest.
    pub fn poll_deadline(&self) -> Option<Timestamp> {
        let running = self.workers.values().filter_map(|worker| {
            let leaving = matches!(worker.stage, Stage::Leaves).then(|| worker.since.later(LEAVE));
            let timeout = self
                .spec
                .task_timeout
                .filter(|_| !worker.window.is_empty())
                .map(|limit| worker.front_since.later(limit));
            let old = self
                .spec
                .max_age
                .filter(|_| worker.stage == Stage::Serves)
                .map(|age| worker.asked.later(age));
            let all = leaving.into_iter().chain(timeout).chain(old);
            all.filter(|_| !worker.is_doomed()).min()
        });
        let rested = match self.phase {
            Phase::Resting(until) | Phase::Leaving(_, until) => Some(until),
            Phase::Idle | Phase::Starting | Phase::Running | Phase::Clearing(_) | Phase::Over => {
                None
            }
        };
        let slots = self.slots.values().filter_map(|slot| slot.rests_until);
        let slots = slots.filter(|_| self.phase == Phase::Running);
        let all = running.chain(self.look_deadline()).chain(rested);
        all.chain(slots).min()
    }

    /// All that follows from the time alone, and from what an event has changed.
    fn on_time(&mut self, now: Timestamp) {
        self.mind_times(now);
        self.mind_memory(now);
        self.start_rested(now);
        self.wake_rested(now);
        self.end_late(now);
        if std::mem::take(&mut self.dispatch) {
            self.dispatch(now);
        }
    }

    /// The one who waits in the queue for this; for tests and for telling.
    pub fn waiting(&self) -> impl Iterator<Item = Seq> {
        self.queue.iter().chain(&self.alone).map(|it| it.seq)
    }
}
