//! What an outsider knows who sees all that passes: kept for the checkers, apart from the decider.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use supervise::{
    supervisor::{
        action::{Action, Answer},
        cause::Class,
        event::{Event, Exact, Oom, Sample, Stop},
        report::{Cause, Limits, Report, Who},
        spec::{Kind, Measure, RestartWhen, Spec},
    },
    units::{Bytes, RunId, Signal, Timestamp, WorkerId},
};

/// One event, and all that came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turn {
    pub(crate) at: Timestamp,
    pub(crate) event: Option<Event>,
    pub(crate) actions: Vec<Action>,
    pub(crate) reports: Vec<Report>,
}

impl Turn {
    /// The signal that an operator just sent us.
    pub(crate) const fn by_operator(&self) -> Option<Signal> {
        match self.event {
            Some(Event::Signalled(signal)) => Some(signal),
            _ => None,
        }
    }

    /// Signals to the command that are the decider's own idea.
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
        self.reports.iter().filter_map(|report| match report {
            Report::Draining { worker, cause } => Some((*worker, *cause)),
            _ => None,
        })
    }
}

/// A report takes four seconds at the most, and is waited for one more.
const ANSWERED_AFTER: Duration = Duration::from_secs(5);
/// From outside it takes a second at the most.
const SAID_AFTER: Duration = Duration::from_secs(1);

/// What was seen of one worker.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Timestamp,
    pub(crate) ready: Option<Timestamp>,
    pub(crate) draining: Option<(Timestamp, Cause)>,
    pub(crate) due: Option<(Timestamp, Cause)>,
    pub(crate) gone: Option<Timestamp>,
    /// It was asked something, or has answered, and until then its limits may wait for it.
    pub(crate) asked_until: Timestamp,
    /// What counts against the ceiling, as far as the samples tell; newest last.
    pub(crate) values: Vec<(Timestamp, Bytes)>,
    /// The first exact figure of a ready one.
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

    /// Anonymous pages that it shares, and its private memory; as far as the samples tell.
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
            // Both sides of a fork count what they share: nothing is known before an exact look.
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
pub(crate) struct Books {
    pub(crate) spec: Spec,
    pub(crate) now: Timestamp,
    pub(crate) workers: BTreeMap<WorkerId, Seen>,
    pub(crate) limits: Limits,
    pub(crate) limits_at: Timestamp,
    /// The cap that the last adopted worker came under.
    adopted_under: Option<Bytes>,
    pub(crate) server: Bytes,
    pub(crate) run: RunId,
    /// The command executes, as far as the decider was told.
    pub(crate) up: bool,
    pub(crate) ended: Option<Timestamp>,
    pub(crate) run_over: bool,
    pub(crate) stopping: Option<Timestamp>,
    pub(crate) stop_now: bool,
    pub(crate) exit: Option<i32>,
    /// The last time an operator moved the server's workers.
    pub(crate) moved: Timestamp,
    awaited: Option<WorkerId>,
    lowered: Option<WorkerId>,
    /// An operator had so many go that have not gone.
    fewer: u32,
    /// Workers in a row that ended by themselves before they were ready, in this run.
    pub(crate) unready: u32,
    /// The times of kills at the budget within the last 30 seconds.
    kills: VecDeque<Timestamp>,
    /// The run was ended because its workers could not start, or were killed again and again.
    pub(crate) looped: bool,
    /// A warning has said that recycling does not help.
    pub(crate) no_help: bool,
}

impl Books {
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
            lowered: None,
            fewer: 0,
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

    /// The cap in force. Limits are told a second after the last worker has come, and workers may
    /// have been under them for long before that.
    pub(crate) fn cap(&self) -> Option<Bytes> {
        self.limits.cap.bytes.or(self.adopted_under)
    }

    /// Those asked to go by plan, and not gone.
    pub(crate) fn away(&self) -> usize {
        let planned = |seen: &Seen, cause| match cause {
            Cause::Stop => false,
            // An operator had the server end it.
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
        if let Some(Event::Said { worker, .. }) = &turn.event {
            self.note_asked(*worker, Duration::ZERO);
        }
        if let Some(event) = &turn.event {
            self.take_event(event);
        }
        for report in &turn.reports {
            self.take_report(report, turn);
        }
        for action in &turn.actions {
            match action {
                Action::Adopt { worker, cap, .. } => {
                    self.adopted_under = *cap;
                    self.workers.insert(*worker, Seen::new(self.now));
                    // It may drain in the turn in which it is seen: its server is gone.
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
                Action::KeepReport { about, .. } => self.note_asked(about.worker, SAID_AFTER),
                Action::KillRun { .. } => {
                    self.looped |= self.may_loop() || self.kills.len() >= 5;
                }
                // A replacement that was refused to an operator is not made later.
                Action::Reply {
                    answer: Answer::Refused(why),
                    ..
                } if why.contains("cannot start") => self.forget_wishes(),
                Action::Exit { status } => self.exit = Some(*status),
                _ => {}
            }
        }
    }

    fn forget_wishes(&mut self) {
        let wish = |cause| matches!(cause, Cause::Request | Cause::Reload);
        for seen in self.workers.values_mut() {
            seen.due = seen.due.filter(|(_, cause)| !wish(*cause));
        }
    }

    fn take_event(&mut self, event: &Event) {
        let now = self.now;
        let fresh = |run: &RunId| *run == self.run;
        match event {
            Event::Started { run, .. } if fresh(run) => {
                self.up = true;
                if let Some(worker) = self.awaited.take() {
                    self.workers.insert(worker, Seen::new(now));
                }
            }
            Event::CommandEnded { run, .. } if fresh(run) && self.up => {
                self.up = false;
                self.ended = Some(now);
            }
            Event::StartFailed { run, .. } if fresh(run) => self.ended = Some(now),
            Event::RunOver { run } if fresh(run) => {
                self.run_over = true;
                self.up = false;
                for seen in self.workers.values_mut().filter(|seen| seen.is_alive()) {
                    seen.gone = Some(now);
                }
            }
            Event::NoWorker { worker } => self.bury(*worker),
            Event::WorkerEnded { worker, .. } => self.bury(*worker),
            Event::WorkerReady { worker } => {
                if let Some(seen) = self.workers.get_mut(worker).filter(|one| one.is_alive()) {
                    seen.ready.get_or_insert(now);
                    self.unready = 0;
                }
            }
            Event::Sampled { worker, sample } => {
                let measure = self.spec.memory.measure;
                if let Some(seen) = self.workers.get_mut(worker).filter(|seen| seen.is_alive()) {
                    seen.take(now, *sample, measure);
                }
            }
            Event::ServerSampled { private } => self.server = *private,
            Event::Signalled(Signal::TERM | Signal::INT) => self.on_stop(Stop::Graceful),
            Event::Signalled(Signal::QUIT) if self.is_server() && self.up => {
                self.stopping.get_or_insert(now);
            }
            Event::Signalled(signal) => {
                self.moved = now;
                self.fewer += u32::from(*signal == Signal::TTOU);
            }
            Event::Asked {
                ask: supervise::supervisor::event::Ask::Stop(how),
                ..
            } => {
                // A second request by the API is at once only if it says so.
                if *how == Stop::Now {
                    self.stop_now = true;
                }
                self.stopping.get_or_insert(now);
            }
            _ => {}
        }
    }

    /// A second signal is at once.
    fn on_stop(&mut self, how: Stop) {
        self.stop_now |= how == Stop::Now || self.stopping.is_some();
        self.stopping.get_or_insert(self.now);
    }

    /// Workers end before they are ready, again and again, and no worker serves.
    pub(crate) fn may_loop(&self) -> bool {
        // A worker that was told to leave still answers the requests it has begun.
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

    fn bury(&mut self, worker: WorkerId) {
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

    fn take_report(&mut self, report: &Report, turn: &Turn) {
        let now = self.now;
        match report {
            Report::Limits(limits) => {
                self.limits = limits.clone();
                self.limits_at = now;
            }
            Report::WorkerReady { worker, .. } => {
                if let Some(seen) = self.workers.get_mut(worker) {
                    seen.ready.get_or_insert(now);
                }
            }
            Report::Draining { worker, cause } => self.note_drain(*worker, *cause),
            Report::Due { worker, cause, .. } => {
                if let Some(seen) = self.workers.get_mut(worker) {
                    seen.due = Some((now, *cause));
                }
            }
            Report::Ended(end) if end.cause.class() == Class::Own => self.note_unready(end.who),
            Report::Ended(end) if end.cause == Cause::BudgetKill => {
                let now = self.now;
                let recent = |at: &Timestamp| now.since(*at) <= Duration::from_secs(30);
                self.kills.retain(recent);
                self.kills.push_back(now);
            }
            Report::Warning(text) if text.starts_with("the reload is given up") => {
                self.forget_wishes();
            }
            Report::Warning(text) => {
                self.no_help |= text.contains("does not help")
                    || text.contains("cannot help")
                    || text.contains("did not help");
            }
            Report::GaveUp { .. } => {
                self.stopping.get_or_insert(now);
            }
            Report::Lowered => self.lowered = turn.drains().next().map(|(worker, _)| worker),
            Report::Ended(end) if end.cause == Cause::Scale => {
                // Its server chose another one than was meant: that one serves on.
                let Who::Worker(gone) = end.who else { return };
                let unasked = self
                    .workers
                    .get(&gone)
                    .is_some_and(|s| s.draining.is_none());
                if unasked && self.fewer > 0 {
                    self.fewer -= 1;
                } else if let Some(meant) = self.lowered.take().filter(|_| unasked)
                    && let Some(seen) = self.workers.get_mut(&meant)
                {
                    seen.draining = None;
                }
            }
            _ => {}
        }
    }
}

/// The kernel had a hand in it.
pub(crate) const fn by_kernel(oom: Oom) -> Option<Cause> {
    match oom {
        Oom::No => None,
        Oom::Cap => Some(Cause::Cap),
        Oom::Budget => Some(Cause::BudgetKill),
        Oom::Elsewhere => Some(Cause::Oom),
    }
}
