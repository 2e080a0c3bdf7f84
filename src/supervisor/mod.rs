//! DECIDES. Events in; actions, reports and a deadline out. No clock, no kernel, no async, no log.
//!
//! The contract: after [`Supervisor::new`] and after each [`Supervisor::handle_event`], drain
//! [`Supervisor::poll_action`] and [`Supervisor::poll_report`], in that order; when the moment of
//! [`Supervisor::poll_deadline`] has passed, hand in [`Event::Deadline`]. The first two events are
//! [`Event::Machine`] and [`Event::Available`]; the last action is [`Action::Exit`].
//!
//! Events are decided on in `service` (the command's life), `watch` and `recycle`, among others.
#![forbid(unsafe_code)]
#![deny(
    clippy::wildcard_enum_match_arm,
    clippy::match_wildcard_for_single_variants
)]

pub mod action;
mod asking;
mod births;
pub mod cause;
mod counting;
mod deaths;
mod due;
mod end_loop;
mod endings;
pub mod event;
mod explaining;
mod futile;
mod growth;
pub mod handed;
mod last_words;
mod leftovers;
mod limits;
mod memory;
mod operator;
mod picture;
pub mod pool;
mod recycle;
pub mod report;
mod restart;
mod service;
mod sharing;
mod spare;
pub mod spec;
mod suspension;
pub mod tell;
mod tracing;
mod watch;
mod wire;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use action::Action;
use event::{Event, Machine};
use report::{End, Limits, Report};
use spec::{Kind, RestartWhen, Spec};
use worker::Worker;

use crate::units::{Bytes, Habits, Timestamp, WorkerId};

/// The whole decision, and all that it rests on.
#[derive(Debug)]
pub struct Supervisor {
    spec: Spec,
    seed: u64,
    machine: Option<Machine>,
    available: Option<Bytes>,
    limits: Limits,
    /// The limits were told once all workers were up.
    told_limits: Option<Limits>,
    service: service::Service,
    workers: BTreeMap<WorkerId, Worker>,
    next_worker: WorkerId,
    spare: spare::Spare,
    operator: operator::Operator,
    /// Private memory of the server's own processes.
    server_memory: Bytes,
    /// What the service's groups were last charged with and cannot give back.
    held: Bytes,
    /// Not told of pressure again before then.
    tell_pressure_at: Timestamp,
    /// A worker needs so long from being seen to being ready.
    boot_time: Option<Duration>,
    /// The largest baseline seen: what a newborn is expected to need.
    newborn: Bytes,
    /// Recycles that did not help.
    futile: futile::Futile,
    /// Ends of workers that may become a loop.
    ends_loop: end_loop::EndLoop,
    /// What fills the budget beside the memory of workers.
    contents: event::Contents,
    /// So many workers in a row met their cap while they booted.
    capped_at_boot: u32,
    /// Whether the application can start.
    starts: suspension::Starts,
    /// What was warned of is not warned of again.
    warned: BTreeSet<String>,
    memo: asking::Memo,
    leftovers: leftovers::Leftovers,
    last_words: last_words::LastWords,
    /// When to read what workers have done.
    next_count: Option<Timestamp>,
    /// What workers that have ended had done; `None`: nobody counted.
    dead_done: Option<u64>,
    /// Something changed that may make a worker due, or let one go.
    replan: bool,
    /// When to think about recycling again though nothing happens.
    next_plan: Option<Timestamp>,
    recycles: BTreeMap<String, u64>,
    unplanned: BTreeMap<String, u64>,
    ends: VecDeque<End>,
    actions: VecDeque<Action>,
    reports: VecDeque<Report>,
}

impl Supervisor {
    /// A service that has not begun. `seed` is for the jitter.
    pub fn new(spec: Spec, seed: u64, now: Timestamp) -> Self {
        Self {
            service: service::Service::new(spec.restart, now),
            spare: spare::Spare::new(now),
            spec,
            seed,
            machine: None,
            available: None,
            limits: Limits::default(),
            told_limits: None,
            workers: BTreeMap::new(),
            next_worker: WorkerId::FIRST,
            operator: operator::Operator::default(),
            server_memory: Bytes::ZERO,
            held: Bytes::ZERO,
            tell_pressure_at: now,
            boot_time: None,
            newborn: Bytes::ZERO,
            futile: futile::Futile::default(),
            ends_loop: end_loop::EndLoop::default(),
            contents: event::Contents::default(),
            capped_at_boot: 0,
            starts: suspension::Starts::default(),
            warned: BTreeSet::new(),
            memo: asking::Memo::default(),
            leftovers: leftovers::Leftovers::default(),
            last_words: last_words::LastWords::new(now),
            next_count: None,
            dead_done: None,
            replan: false,
            next_plan: None,
            recycles: BTreeMap::new(),
            unplanned: BTreeMap::new(),
            ends: VecDeque::new(),
            actions: VecDeque::new(),
            reports: VecDeque::new(),
        }
    }

    /// Takes in what happened at `now`.
    pub fn handle_event(&mut self, now: Timestamp, event: Event) {
        match event {
            Event::Deadline => {}
            Event::Available(bytes) => self.on_available(now, bytes),
            Event::Machine(machine) => self.on_machine(now, machine),
            Event::Started { run, pid } => self.on_started(now, run, pid),
            Event::StartFailed { run, errno, error } => {
                self.on_start_failed(now, run, errno, &error);
            }
            Event::Answers { run } => self.on_answers(now, run),
            Event::BacklogEmpty { run } => self.on_backlog_empty(run),
            Event::CommandEnded {
                run,
                ended,
                oom,
                successor,
            } => self.on_command_ended(now, run, (ended, oom), successor),
            Event::RunOver { run } => self.on_run_over(now, run),
            Event::Masters { run, count } => self.on_masters(now, run, count),
            Event::WorkerSeen { run, pid } => self.on_worker_seen(now, run, pid),
            Event::NoWorker { worker } => self.on_no_worker(now, worker),
            Event::ServerHelper(pid, name) => {
                self.tell(Report::ServerHelper { pid, command: name })
            }
            Event::LeftBehind(found) => self.on_left_behind(now, found),
            Event::WorkerReady { worker } => self.on_worker_ready(now, worker),
            Event::WorkerEnded {
                worker,
                ended,
                oom,
                peak,
            } => {
                self.on_worker_ended(now, worker, (ended, oom, peak));
            }
            Event::HelperKilled { worker, oom, whole } => self.on_helper_killed(worker, oom, whole),
            Event::Sampled { worker, sample } => self.on_sampled(now, worker, sample),
            Event::CapHigher { worker, limit } => self.on_cap_higher(worker, limit),
            Event::Tripped { worker } => self.on_tripped(now, worker),
            Event::ServerSampled { private } => self.server_memory = private,
            Event::Held { held } => self.on_held(held),
            Event::Contents(contents) => self.contents = contents,
            Event::Pressed => self.on_pressed(now),
            Event::Charged { used, of } => self.on_charged(now, used, of),
            Event::AgentFound {
                worker,
                agent,
                expected,
            } => self.on_agent_found(now, worker, (agent, expected)),
            Event::ServerFound { pid, server } => self.on_server_found(pid, server),
            Event::Said { worker, said } => self.on_said(now, worker, said),
            Event::Counted { worker, counts } => self.on_counted(now, worker, counts),
            Event::Signalled(signal) => self.on_signal(now, signal),
            Event::Asked { request, ask } => self.on_asked(now, request, ask),
            Event::UpgradeChecked { request, verdict } => self.on_upgrade_checked(request, verdict),
            Event::Unwatched { workers, limit } => {
                self.tell(Report::Unwatched { workers, limit });
            }
            Event::Failed {
                what,
                worker,
                effect,
            } => self.on_failed(worker, effect, &what),
        }
        self.on_time(now);
    }

    /// What to do next, oldest first.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// What to tell next, oldest first.
    pub fn poll_report(&mut self) -> Option<Report> {
        self.reports.pop_front()
    }

    /// When to hand in [`Event::Deadline`] at the latest.
    pub fn poll_deadline(&self) -> Option<Timestamp> {
        let drains = self.workers.values().filter_map(|worker| {
            worker
                .drain()
                .filter(|drain| !drain.killed)
                .map(|drain| drain.leave.until)
        });
        let looks = self.workers.values().map(|worker| worker.memory.look_at());
        drains
            .chain(looks)
            .chain(self.service_deadline())
            .chain(self.recycle_deadline())
            .chain(self.asking_deadline())
            .chain(self.count_deadline())
            .chain(self.suspension_deadline())
            .chain(self.last_words_deadline())
            .chain(self.tracing_deadline())
            .min()
    }

    /// All that follows from the time alone, and from what an event has changed.
    fn on_time(&mut self, now: Timestamp) {
        self.end_drains(now);
        self.mind_service(now);
        self.look(now);
        self.mind_asking(now);
        self.mind_counts(now);
        self.mind_suspension(now);
        self.mind_recycling(now);
        self.mind_tracing(now);
        self.mind_last_words(now);
    }

    const fn is_job(&self) -> bool {
        matches!(self.spec.restart.when, RestartWhen::Never)
    }

    const fn habits(&self) -> Option<Habits> {
        match self.spec.kind {
            Kind::Server(habits) => Some(habits),
            Kind::Single => None,
        }
    }

    fn ceiling_of(&self, worker: &Worker) -> Option<Bytes> {
        worker.ceiling(self.limits.ceiling.bytes, self.spec.recycle.jitter)
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn tell(&mut self, report: Report) {
        self.reports.push_back(report);
    }

    /// Warns of a thing once; `about` is what makes two warnings the same.
    fn warn_once(&mut self, about: impl Into<String>, message: impl FnOnce() -> String) {
        if self.warned.insert(about.into()) {
            self.tell(Report::Warning(message()));
        }
    }

    /// Keeps an end for asking, counts it, and tells it.
    fn record_end(&mut self, end: End) {
        let counts = if end.cause.is_recycle() {
            &mut self.recycles
        } else {
            &mut self.unplanned
        };
        let count = counts.entry(end.cause.to_string()).or_default();
        *count = count.saturating_add(1);
        if self.ends.len() >= self.spec.control.history {
            self.ends.pop_front();
        }
        self.last_words.on_end(&end, self.limits.cap.bytes);
        self.ends.push_back(end.clone());
        self.tell(Report::Ended(end));
    }
}
