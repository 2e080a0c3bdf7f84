//! A pool: workers that run tasks. Events go in; actions and a deadline come out.
//!
//! A template process imports everything once. Each slot has a *nest*, forked from the template
//! into the slot's cgroup. The nest forks the slot's workers, so that their cap applies from the
//! start. A worker has a window of several tasks. It writes which task it begins and finishes into
//! a page of memory that outlives it, so that its death is attributed to the right task.
//!
//! The guarantee: each task gets exactly one result, a delivery or a failure. The only exception is
//! a pool that stops: tasks that have not begun get none, and neither do tasks whose attempt was
//! cut off by the stop.

mod deaths;
mod dispatch;
pub mod event;
#[cfg(test)]
mod fixture;
mod life;
mod memory;
mod refusals;
pub mod spec;
mod worker;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use event::{Action, Event, Over, SlotId, WorkerEnd};
use spec::PoolSpec;
use worker::{Progress, Slot, Stage, Ticket, Worker};

use crate::{
    supervisor::report::Limits,
    units::{Bytes, Timestamp, WorkerId},
};

/// Failed starts in a row after which the pool gives up.
const STARTS_MAX: u32 = 3;
/// Workers that die in a row while they start, after which the pool gives up.
const DEATHS_MAX: u32 = 10;
/// Time limit of the exit handlers of a worker, and of the template.
const LEAVE: Duration = Duration::from_secs(10);
/// How often a task is put back without blame. The next time it fails.
const LOST_MAX: u32 = 5;

/// The decisions of a pool, without any input or output.
#[derive(Debug)]
pub struct Pool {
    spec: PoolSpec,
    limits: Limits,
    phase: Phase,
    slots: BTreeMap<SlotId, Slot>,
    workers: BTreeMap<WorkerId, Worker>,
    next_worker: WorkerId,
    /// Tasks that wait to be sent, the retried ones first.
    queue: VecDeque<Ticket>,
    /// Tasks that wait to be retried in a worker of their own.
    alone: VecDeque<Ticket>,
    source_ended: bool,
    /// The pool stops: on request, or after the first failure.
    stop: Option<Over>,
    /// Mean time of a task, in microseconds; `None` before the first.
    mean_micros: Option<f64>,
    /// The most memory that tasks of a key have needed.
    needs: BTreeMap<u32, Bytes>,
    starts_failed: u32,
    deaths: u32,
    template_failures: u32,
    /// A template has been ready at least once.
    has_imported: bool,
    actions: VecDeque<Action>,
    /// Something has changed that may let a task be sent.
    dispatch: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// The available memory is not known yet.
    Idle,
    Starting,
    /// The template could not start. It is started again at this time.
    BackingOff(Timestamp),
    Running,
    /// The workers have exited, and the template runs its exit handlers. It is killed at this time.
    Leaving(Over, Timestamp),
    /// The template and everything that it started are being killed.
    Clearing(Next),
    Over,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Next {
    /// Start the template again after this pause.
    Restart(Duration),
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
            Event::WorkerEnded(WorkerEnd {
                worker,
                ended,
                oom,
                peak,
                begun,
                finished,
                receiving,
            }) => {
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

    /// The number of tasks to read from the source now.
    pub fn wants(&self) -> usize {
        if self.stop.is_some() || self.source_ended || self.phase != Phase::Running {
            return 0;
        }
        let ahead = self.window().saturating_mul(self.slots.len()).max(2) * 2;
        ahead.saturating_sub(self.queue.len().saturating_add(self.alone.len()))
    }

    /// The number of unfinished tasks that an executor may have submitted at a time.
    pub fn credit(&self) -> usize {
        let slots = self.slots.len();
        match self.window() {
            1 => slots.saturating_add(1),
            window => window.saturating_mul(slots).saturating_mul(8),
        }
    }

    /// Tasks that were sent to workers and have not ended.
    pub fn under_way(&self) -> usize {
        self.workers
            .values()
            .map(|worker| worker.window.len())
            .sum()
    }

    /// Workers that have a task.
    pub fn busy(&self) -> usize {
        let is_busy = |worker: &&Worker| !worker.window.is_empty();
        self.workers.values().filter(is_busy).count()
    }

    /// The limits in effect.
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
        let phase = match self.phase {
            Phase::BackingOff(until) | Phase::Leaving(_, until) => Some(until),
            Phase::Idle | Phase::Starting | Phase::Running | Phase::Clearing(_) | Phase::Over => {
                None
            }
        };
        let slots = self.slots.values().filter_map(|slot| slot.backoff_until);
        let slots = slots.filter(|_| self.phase == Phase::Running);
        let all = running.chain(self.sample_deadline()).chain(phase);
        all.chain(slots).min()
    }

    /// Acts on the time that has passed, and on what an event has changed.
    fn on_time(&mut self, now: Timestamp) {
        self.check_times(now);
        self.request_samples(now);
        self.start_after_backoff(now);
        self.end_backoff(now);
        self.kill_late_template(now);
        if std::mem::take(&mut self.dispatch) {
            self.dispatch(now);
        }
    }
}
