//! The record of a run for the checkers: what can be known from the inputs, actions and events,
//! without looking inside the decider.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use supervise::{
    supervisor::{
        action::{Action, Answer},
        cause::Cause,
        cause::Class,
        event::{Event, Limits, Who},
        input::{Exact, Input, Oom, Sample, Stop},
        spec::{Kind, Measure, RestartWhen, Spec},
    },
    units::{Bytes, RunId, Signal, Timestamp, WorkerId},
};

/// One input, and the actions and events that follow from it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turn {
    pub(crate) at: Timestamp,
    pub(crate) input: Option<Input>,
    pub(crate) actions: Vec<Action>,
    pub(crate) events: Vec<Event>,
}

impl Turn {
    /// The signal that an operator sent to the supervisor in this turn.
    pub(crate) const fn by_operator(&self) -> Option<Signal> {
        match self.input {
            Some(Input::Signalled(signal)) => Some(signal),
            _ => None,
        }
    }

    /// Signals to the command that the decider sends of its own accord, not for an operator.
    pub(crate) fn own_signals(&self) -> impl Iterator<Item = Signal> {
        let mut passed = self.by_operator();
        self.actions.iter().filter_map(move |action| match action {
            Action::SignalCommand { signal, .. } if passed == Some(*signal) => {
                passed = None;
                None
            }
            Action::SignalCommand { signal, .. } => Some(*signal),
            _ => None,
        })
    }

    pub(crate) fn drains(&self) -> impl Iterator<Item = (WorkerId, Cause)> {
        self.events.iter().filter_map(|event| match event {
            Event::Draining { worker, cause } => Some((*worker, *cause)),
            _ => None,
        })
    }
}

/// A report takes at most four seconds, and the decider waits one second more.
const ANSWERED_AFTER: Duration = Duration::from_secs(5);
/// A report from outside the process takes at most one second.
const REPORTED_AFTER: Duration = Duration::from_secs(1);

/// What is known of one worker.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Timestamp,
    pub(crate) ready: Option<Timestamp>,
    pub(crate) draining: Option<(Timestamp, Cause)>,
    pub(crate) due: Option<(Timestamp, Cause)>,
    pub(crate) gone: Option<Timestamp>,
    /// Until then the decider may wait for an answer of its agent before it applies the limits.
    pub(crate) asked_until: Timestamp,
    /// Its memory by the configured measure, calculated from the samples; newest last.
    pub(crate) values: Vec<(Timestamp, Bytes)>,
    /// The first exact value once it was ready.
    pub(crate) birth: Option<Bytes>,
    last: Option<Sample>,
    exact: Option<(Sample, Exact)>,
}

impl Seen {
    const fn new(at: Timestamp) -> Self {
        Self {
            at,
            ready: None,
            draining: None,
            due: None,
            gone: None,
            asked_until: at,
            values: Vec::new(),
            birth: None,
            last: None,
            exact: None,
        }
    }

    pub(crate) const fn is_alive(&self) -> bool {
        self.gone.is_none()
    }

    pub(crate) const fn serves(&self) -> bool {
        self.is_alive() && self.ready.is_some() && self.draining.is_none()
    }

    pub(crate) fn value(&self) -> Option<Bytes> {
        self.values.last().map(|(_, value)| *value)
    }

    /// The anonymous pages that it shares, and its private memory, calculated from the samples.
    pub(crate) fn shared(&self) -> (Bytes, Bytes) {
        let (Some((then, exact)), Some(last)) = (self.exact, self.last) else {
            return (Bytes::ZERO, self.last.unwrap_or_default().anon);
        };
        let private = exact.private.plus(last.anon.minus(then.anon));
        let private = private.minus(then.anon.minus(last.anon));
        (last.anon.minus(private), private)
    }

    fn take(&mut self, at: Timestamp, sample: Sample, measure: Measure) {
        if let Some(exact) = sample.exact {
            self.exact = Some((sample, exact));
        }
        if self.last.is_none_or(|last| sample.at >= last.at) {
            self.last = Some(sample);
        }
        let Some(last) = self.last else { return };
        let moved = |figure: Bytes, then: Sample| {
            figure
                .plus(last.anon.minus(then.anon))
                .minus(then.anon.minus(last.anon))
        };
        let value = match (measure, self.exact) {
            // After a fork both processes count the shared pages: the value is unknown until the
            // next exact sample.
            (Measure::Private | Measure::Pss, Some((then, _)))
                if then.processes != last.processes =>
            {
                Bytes::ZERO
            }
            (Measure::Rss, _) => last.rss,
            (Measure::Cgroup, _) => last.cgroup.unwrap_or(last.rss),
            (Measure::Private, Some((then, exact))) => moved(exact.private, then),
            (Measure::Pss, Some((then, exact))) => moved(exact.pss, then),
            (Measure::Private | Measure::Pss, None) => return,
        };
        if self.ready.is_some() && self.birth.is_none() && value > Bytes::ZERO {
            self.birth = Some(value);
        }
        self.values.push((at, value));
    }
}

#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) spec: Spec,
    pub(crate) now: Timestamp,
    pub(crate) workers: BTreeMap<WorkerId, Seen>,
    pub(crate) limits: Limits,
    pub(crate) limits_at: Timestamp,
    /// The cap of the worker that was adopted last.
    adopted_under: Option<Bytes>,
    pub(crate) server: Bytes,
    pub(crate) run: RunId,
    /// The command runs, as far as the decider knows.
    pub(crate) up: bool,
    pub(crate) ended: Option<Timestamp>,
    pub(crate) run_over: bool,
    pub(crate) stopping: Option<Timestamp>,
    pub(crate) stop_now: bool,
    pub(crate) exit: Option<i32>,
    /// When an operator last signalled the server, which may have changed its workers.
    pub(crate) moved: Timestamp,
    awaited: Option<WorkerId>,
    /// The server has retired another worker than expected, whose end follows.
    spared: bool,
    /// How many workers an operator had the server stop that have not ended yet.
    stops_pending: u32,
    /// Consecutive workers of this run that ended by themselves before they were ready.
    pub(crate) unready: u32,
    /// The times of the kills by the budget within the last 30 seconds.
    kills: VecDeque<Timestamp>,
    /// The decider ended the run because its workers could not start, or were killed repeatedly.
    pub(crate) looped: bool,
    /// The decider has warned that recycling does not help.
    pub(crate) no_help: bool,
}

impl Record {
    pub(crate) fn new(spec: Spec, now: Timestamp) -> Self {
        Self {
            spec,
            now,
            workers: BTreeMap::new(),
            limits: Limits::default(),
            limits_at: now,
            adopted_under: None,
            server: Bytes::ZERO,
            run: RunId(0),
            up: false,
            ended: None,
            run_over: false,
            stopping: None,
            stop_now: false,
            exit: None,
            moved: now,
            awaited: None,
            spared: false,
            stops_pending: 0,
            unready: 0,
            kills: VecDeque::new(),
            looped: false,
            no_help: false,
        }
    }

    pub(crate) const fn is_server(&self) -> bool {
        matches!(self.spec.kind, Kind::Server(_))
    }

    pub(crate) const fn is_job(&self) -> bool {
        matches!(self.spec.restart.when, RestartWhen::Never)
    }

    pub(crate) fn alive(&self) -> impl Iterator<Item = (&WorkerId, &Seen)> {
        self.workers.iter().filter(|(_, seen)| seen.is_alive())
    }

    /// The cap in force. The `Limits` event comes a second after the last worker has started, and
    /// the cap may have been in force long before that.
    pub(crate) fn cap(&self) -> Option<Bytes> {
        self.limits.cap.bytes.or(self.adopted_under)
    }

    /// How many workers are unavailable: draining for a planned cause, and not ended yet.
    pub(crate) fn away(&self) -> usize {
        let planned = |seen: &Seen, cause| match cause {
            Cause::Stop => false,
            // The server ends it for an operator.
            Cause::Scale | Cause::Reload => seen.at > self.moved,
            _ => true,
        };
        self.alive()
            .filter(|(_, seen)| seen.draining.is_some_and(|(_, cause)| planned(seen, cause)))
            .count()
    }

    fn note_asked(&mut self, worker: WorkerId, within: Duration) {
        if let Some(seen) = self.workers.get_mut(&worker) {
            seen.asked_until = self.now.later(within);
        }
    }

    pub(crate) fn take(&mut self, turn: &Turn) {
        self.now = turn.at;
        if let Some(Input::AgentAnswered { worker, .. }) = &turn.input {
            self.note_asked(*worker, Duration::ZERO);
        }
        if let Some(input) = &turn.input {
            self.take_input(input);
        }
        for event in &turn.events {
            self.take_event(event);
        }
        for action in &turn.actions {
            match action {
                Action::Adopt { worker, cap, .. } => {
                    self.adopted_under = *cap;
                    self.workers.insert(*worker, Seen::new(self.now));
                    // It may drain in the turn in which it is adopted, if its server has ended.
                    if let Some((_, cause)) = turn.drains().find(|(one, _)| one == worker) {
                        self.note_drain(*worker, cause);
                    }
                }
                Action::Start { run, worker } => {
                    self.run = *run;
                    self.ended = None;
                    self.run_over = false;
                    (self.unready, self.looped) = (0, false);
                    self.awaited = worker.map(|(worker, _)| worker);
                }
                Action::AskAgent { worker, .. } => self.note_asked(*worker, ANSWERED_AFTER),
                Action::KeepReport { about, .. } => self.note_asked(about.worker, REPORTED_AFTER),
                Action::KillRun { .. } => {
                    self.looped |= self.may_loop() || self.kills.len() >= 5;
                }
                // A replacement that was refused to the operator does not happen later.
                Action::Reply {
                    answer: Answer::Refused(why),
                    ..
                } if why.contains("cannot start") => self.forget_requests(),
                Action::Exit { status } => self.exit = Some(*status),
                _ => {}
            }
        }
    }

    fn forget_requests(&mut self) {
        let requested = |cause| matches!(cause, Cause::Request | Cause::Reload);
        for seen in self.workers.values_mut() {
            seen.due = seen.due.filter(|(_, cause)| !requested(*cause));
        }
    }

    fn take_input(&mut self, input: &Input) {
        let now = self.now;
        let fresh = |run: &RunId| *run == self.run;
        match input {
            Input::Started { run, .. } if fresh(run) => {
                self.up = true;
                if let Some(worker) = self.awaited.take() {
                    self.workers.insert(worker, Seen::new(now));
                }
            }
            Input::CommandEnded { run, .. } if fresh(run) && self.up => {
                self.up = false;
                self.ended = Some(now);
            }
            Input::StartFailed { run, .. } if fresh(run) => self.ended = Some(now),
            Input::RunOver { run } if fresh(run) => {
                self.run_over = true;
                self.up = false;
                for seen in self.workers.values_mut().filter(|seen| seen.is_alive()) {
                    seen.gone = Some(now);
                }
            }
            Input::NoWorker { worker } => self.note_ended(*worker),
            Input::WorkerEnded { worker, .. } => self.note_ended(*worker),
            Input::WorkerReady { worker } => {
                if let Some(seen) = self.workers.get_mut(worker).filter(|one| one.is_alive()) {
                    seen.ready.get_or_insert(now);
                    self.unready = 0;
                }
            }
            Input::Sampled { worker, sample } => {
                let measure = self.spec.memory.measure;
                if let Some(seen) = self.workers.get_mut(worker).filter(|seen| seen.is_alive()) {
                    seen.take(now, *sample, measure);
                }
            }
            Input::ServerSampled { private } => self.server = *private,
            Input::Signalled(Signal::TERM | Signal::INT) => self.on_stop(Stop::Graceful),
            Input::Signalled(Signal::QUIT) if self.is_server() && self.up => {
                self.stopping.get_or_insert(now);
            }
            Input::Signalled(signal) => {
                self.moved = now;
                self.stops_pending += u32::from(*signal == Signal::TTOU);
            }
            Input::Asked {
                ask: supervise::supervisor::input::Ask::Stop(how),
                ..
            } => {
                // A second stop request by the API kills immediately only if it says so.
                if *how == Stop::Now {
                    self.stop_now = true;
                }
                self.stopping.get_or_insert(now);
            }
            _ => {}
        }
    }

    /// A second stop signal kills immediately.
    fn on_stop(&mut self, how: Stop) {
        self.stop_now |= how == Stop::Now || self.stopping.is_some();
        self.stopping.get_or_insert(self.now);
    }

    /// Workers repeatedly end before they are ready, and no worker serves.
    pub(crate) fn may_loop(&self) -> bool {
        // A draining worker still answers the requests it has begun.
        let serves = self.alive().any(|(_, seen)| seen.ready.is_some());
        self.is_server() && self.up && self.stopping.is_none() && self.unready >= 5 && !serves
    }

    /// Counts a worker that ended by itself before it was ready.
    fn note_unready(&mut self, who: Who) {
        let Who::Worker(worker) = who else { return };
        let unready = |seen: &Seen| seen.ready.is_none() && seen.draining.is_none();
        if self.up && self.workers.get(&worker).is_some_and(unready) {
            self.unready += 1;
        }
    }

    fn note_ended(&mut self, worker: WorkerId) {
        let now = self.now;
        if let Some(seen) = self.workers.get_mut(&worker) {
            seen.gone.get_or_insert(now);
        }
    }

    fn note_drain(&mut self, worker: WorkerId, cause: Cause) {
        let now = self.now;
        if let Some(seen) = self.workers.get_mut(&worker) {
            seen.draining = Some((now, cause));
        }
    }

    fn take_event(&mut self, event: &Event) {
        let now = self.now;
        match event {
            Event::Limits(limits) => {
                self.limits = limits.clone();
                self.limits_at = now;
            }
            Event::WorkerReady { worker, .. } => {
                if let Some(seen) = self.workers.get_mut(worker) {
                    seen.ready.get_or_insert(now);
                }
            }
            Event::Draining { worker, cause } => self.note_drain(*worker, *cause),
            Event::Due { worker, cause, .. } => {
                if let Some(seen) = self.workers.get_mut(worker) {
                    seen.due = Some((now, *cause));
                }
            }
            Event::Ended(end) if end.cause.class() == Class::Own => self.note_unready(end.who),
            Event::Ended(end) if end.cause == Cause::BudgetKill => {
                let now = self.now;
                let recent = |at: &Timestamp| now.since(*at) <= Duration::from_secs(30);
                self.kills.retain(recent);
                self.kills.push_back(now);
            }
            Event::Warning(text) if text.starts_with("the reload is given up") => {
                self.forget_requests();
            }
            Event::Warning(text) => {
                self.no_help |= text.contains("does not help")
                    || text.contains("cannot help")
                    || text.contains("did not help");
            }
            Event::GaveUp { .. } => {
                self.stopping.get_or_insert(now);
            }
            Event::Reason {
                worker: Some(worker),
                text,
            } if text.contains("serves on: ") => {
                self.spared = true;
                if let Some(seen) = self.workers.get_mut(worker) {
                    seen.draining = None;
                }
            }
            Event::Ended(end) if end.cause == Cause::Scale => {
                let Who::Worker(gone) = end.who else { return };
                let unasked = self
                    .workers
                    .get(&gone)
                    .is_some_and(|s| s.draining.is_none());
                if unasked && !std::mem::take(&mut self.spared) {
                    self.stops_pending = self.stops_pending.saturating_sub(1);
                }
            }
            _ => {}
        }
    }
}

/// The cause, if the kernel killed the process.
pub(crate) const fn by_kernel(oom: Oom) -> Option<Cause> {
    match oom {
        Oom::No => None,
        Oom::Cap => Some(Cause::Cap),
        Oom::Budget => Some(Cause::BudgetKill),
        Oom::Elsewhere => Some(Cause::Oom),
    }
}
