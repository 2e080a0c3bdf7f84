//! A pool: workers that run tasks. Inputs go in; actions, events and a deadline come out.
//!
//! A template process imports everything once. Each slot has a *fork server*, forked from the
//! template into the slot's cgroup. The fork server forks the slot's workers, so that their cap
//! applies from the start. A worker has a window of several tasks. It writes which task it begins
//! and finishes into a page of memory that outlives it, so that its death is attributed to the
//! right task.
//!
//! The guarantee: each task gets exactly one result, a delivery or a failure. The only exception is
//! a pool that stops: tasks that have not begun get none, and neither do tasks whose attempt was
//! cut off by the stop.

mod deaths;
mod dispatch;
mod ends;
#[cfg(test)]
mod fixture;
pub mod input;
mod life;
mod memory;
mod refusals;
mod reports;
mod slot;
pub mod spec;
mod stage;
mod starts;
mod status;
mod tasks;
mod ticket;
mod worker;

use std::{collections::BTreeMap, time::Duration};

use input::{Action, Input, Over, SlotId, WorkerEnd};
use reports::Reports;
use slot::Slot;
use spec::PoolSpec;
use starts::Starts;
use tasks::Tasks;
use ticket::Ticket;
use worker::{Progress, Worker};

use crate::{
    supervisor::{
        event::{Event, Limits},
        input::Machine,
        outbox::Outbox,
        record::Record,
    },
    units::{Timestamp, WorkerId},
};

/// Failed starts in a row after which the pool gives up.
const STARTS_MAX: u32 = 3;
/// Workers that die in a row while they start, after which the pool gives up.
const DEATHS_MAX: u32 = 10;
/// Time limit of the exit handlers of a worker, and of the template.
const LEAVE: Duration = Duration::from_secs(10);
/// How often an attempt of a task may be lost without the task's fault. The next time the task
/// fails.
const LOST_MAX: u32 = 5;

/// The decider of a pool. It does no input or output.
#[derive(Debug)]
pub struct Pool {
    spec: PoolSpec,
    machine: Machine,
    limits: Limits,
    phase: Phase,
    slots: BTreeMap<SlotId, Slot>,
    workers: BTreeMap<WorkerId, Worker>,
    tasks: Tasks,
    starts: Starts,
    /// The pool stops: on request, or after the first failure.
    stop: Option<Over>,
    record: Record,
    reports: Reports,
    out: Outbox<Action>,
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
    /// A pool that has not been started.
    pub fn new(spec: PoolSpec) -> Self {
        let slots = (0..spec.workers)
            .map(|slot| (SlotId(slot), Slot::default()))
            .collect();
        Self {
            spec,
            machine: Machine::default(),
            limits: Limits::default(),
            phase: Phase::Idle,
            slots,
            workers: BTreeMap::new(),
            tasks: Tasks::default(),
            starts: Starts::default(),
            stop: None,
            record: Record::default(),
            reports: Reports::default(),
            out: Outbox::default(),
        }
    }

    /// Takes in what happened at `now`, and decides what follows.
    pub fn handle_input(&mut self, now: Timestamp, input: Input) {
        match input {
            Input::Deadline => {}
            Input::Machine(machine) => self.machine = machine,
            Input::Available(bytes) => self.on_available(bytes),
            Input::TemplateReady => self.on_template_ready(),
            Input::TemplateUnfit => self.on_template_unfit(),
            Input::TemplateFailed(end) => self.on_template_failed(end),
            Input::TemplateGone => self.on_template_gone(now),
            Input::ForkServerUp(slot) => self.on_fork_server_up(now, slot),
            Input::ForkServerGone(slot, oom) => self.on_fork_server_gone(now, slot, oom),
            Input::ForkRefused(slot, worker) => self.on_fork_refused(now, slot, worker),
            Input::Forked { worker, pid } => self.on_forked(worker, pid),
            Input::Ready { worker, base } => self.on_ready(now, worker, base),
            Input::InitializerFailed(worker) => {
                let worker = self.workers.get_mut(&worker);
                worker.into_iter().for_each(Worker::on_initializer_failed);
            }
            Input::Ended {
                worker,
                seq,
                how,
                micros,
                peak,
            } => self.on_ended(now, (worker, seq), (how, micros, peak)),
            Input::NotBegun { worker, seq } => self.on_not_begun(now, worker, seq),
            Input::WorkerEnded(WorkerEnd {
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
            Input::Sampled(slot, memory) => self.on_sampled(now, slot, memory),
            Input::TaskArrived { seq, key } => {
                self.tasks.on_arrived(Ticket::new(seq, key));
                self.plan_dispatch();
            }
            Input::Unreadable => {
                self.tasks.on_failed();
                if self.spec.stop_on_error {
                    self.stop(Over::Stopped);
                }
            }
            Input::SourceEnded => {
                self.tasks.on_source_ended();
                self.plan_dispatch();
            }
            Input::Recycle(worker) => self.recycle(now, worker),
            Input::Report(worker) => self.on_report(now, worker),
            Input::Reported { worker, answer } => self.on_reported(worker, answer),
            Input::Stop => self.stop(Over::Stopped),
            Input::StopAtOnce => self.stop_at_once(),
        }
        self.on_time(now);
    }

    /// The next action to carry out, oldest first.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.out.next_action()
    }

    /// The next event to publish, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.out.next_event()
    }

    /// The number of tasks to read from the source now.
    pub fn wants(&self) -> usize {
        if self.stop.is_some() || self.tasks.has_source_ended() || self.phase != Phase::Running {
            return 0;
        }
        let ahead = self.window().saturating_mul(self.slots.len()).max(2) * 2;
        ahead.saturating_sub(self.tasks.queued())
    }

    /// The maximum number of unfinished tasks that an executor may have submitted.
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
            .map(|worker| worker.window().len())
            .sum()
    }

    /// Workers that have a task.
    pub fn busy(&self) -> usize {
        let is_busy = |worker: &&Worker| !worker.is_idle();
        self.workers.values().filter(is_busy).count()
    }

    /// When to hand in [`Input::Deadline`] at the latest.
    pub fn poll_deadline(&self) -> Option<Timestamp> {
        let is_running = self.phase == Phase::Running;
        let timed = self.workers.values().filter(|_| is_running);
        let timed = timed.filter_map(|worker| {
            let stage = worker.stage();
            let leaving = stage.leaves_since().map(|since| since.later(LEAVE));
            let timeout = self
                .spec
                .task_timeout
                .filter(|_| !worker.is_idle())
                .map(|limit| worker.limited_since().later(limit));
            let old = self
                .spec
                .max_age
                .filter(|_| stage.is_serving())
                .map(|age| worker.asked().later(age));
            let report = worker.reports_since().map(|since| since.later(LEAVE));
            let all = leaving.into_iter().chain(timeout).chain(old).chain(report);
            all.filter(|_| !worker.is_doomed()).min()
        });
        let phase = match self.phase {
            Phase::BackingOff(until) | Phase::Leaving(_, until) => Some(until),
            Phase::Idle | Phase::Starting | Phase::Running | Phase::Clearing(_) | Phase::Over => {
                None
            }
        };
        let slots = self.slots.values().filter_map(Slot::backoff_until);
        let slots = slots.filter(|_| is_running);
        let all = timed.chain(self.sample_deadline()).chain(phase);
        all.chain(slots).min()
    }

    /// Acts on the time that has passed, and on what an input has changed.
    fn on_time(&mut self, now: Timestamp) {
        self.end_late_reports(now);
        self.check_times(now);
        self.request_samples(now);
        self.start_after_backoff(now);
        self.end_backoff(now);
        self.kill_late_template(now);
        if self.tasks.take_dispatch() {
            self.dispatch(now);
        }
    }

    fn act(&mut self, action: Action) {
        self.out.act(action);
    }

    fn emit(&mut self, event: Event) {
        self.out.emit(event);
    }

    /// Something has changed that may allow a task to be sent.
    const fn plan_dispatch(&mut self) {
        self.tasks.plan_dispatch();
    }

    const fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
    }
}
