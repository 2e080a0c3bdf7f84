//! The decider. It takes inputs and returns actions, events and a deadline. It uses no clock, no
//! kernel, no async code and no log.
//!
//! The contract: after [`Supervisor::new`] and after each [`Supervisor::handle_input`], drain
//! [`Supervisor::poll_action`] and [`Supervisor::poll_event`], in that order. When the time of
//! [`Supervisor::poll_deadline`] has passed, hand in [`Input::Deadline`]. The first two inputs are
//! [`Input::Machine`] and [`Input::Available`]. The last action is [`Action::Exit`].
//!
//! `service` decides about the lifecycle of the command and its workers, `policy` about recycles,
//! `kind` about what differs between servers and single programs, and `agents` about requests to
//! agents. `history` decides nothing: it keeps what was observed, and suggests limits.
#![forbid(unsafe_code)]
#![deny(
    clippy::wildcard_enum_match_arm,
    clippy::match_wildcard_for_single_variants
)]

pub mod action;
mod agents;
mod ask;
pub mod cause;
pub mod event;
pub mod event_format;
pub mod history;
pub mod input;
mod kind;
mod leftovers;
mod operator;
mod outbox;
mod policy;
pub mod pool;
mod record;
pub mod routes;
mod service;
pub mod snapshot;
pub mod spec;
mod spec_base;
pub mod state;
mod termination_message;
#[cfg(test)]
mod test_service;
mod timers;
mod usage;
mod worker;

use action::Action;
use event::{End, Event};
use input::{Input, Machine};
use spec::Spec;
use state::State;
use worker::Worker;

use crate::units::{Bytes, Timestamp, WorkerId};

/// The decider of one service, with its whole state.
#[derive(Debug)]
pub struct Supervisor {
    spec: Spec,
    here: Here,
    state: State,
    operator: operator::Operator,
    plan: policy::plan::Plan,
    routes: routes::Routes,
    out: outbox::Outbox<Action>,
}

/// What is known about the machine. Each supervisor finds it out again, also after an upgrade.
#[derive(Debug, Default)]
struct Here {
    machine: Option<Machine>,
    available: Option<Bytes>,
}

impl Supervisor {
    /// A service that has not been started. `seed` is for the jitter.
    pub fn new(spec: Spec, seed: u64, now: Timestamp) -> Self {
        Self {
            state: State::new(&spec, seed, now),
            spec,
            here: Here::default(),
            operator: operator::Operator::default(),
            plan: policy::plan::Plan::default(),
            routes: routes::Routes::default(),
            out: outbox::Outbox::default(),
        }
    }

    /// Takes in what happened at `now`, and decides what follows.
    pub fn handle_input(&mut self, now: Timestamp, input: Input) {
        match input {
            Input::Deadline => {}
            Input::Available(bytes) => self.on_available(now, bytes),
            Input::Machine(machine) => self.on_machine(now, machine),
            Input::Started { run, pid } => self.on_started(now, run, pid),
            Input::StartFailed { run, errno, error } => {
                self.on_start_failed(now, run, errno, &error);
            }
            Input::ServiceReady { run } => self.on_service_ready(now, run),
            Input::Notified(said) => self.on_notified(now, said),
            Input::BacklogEmpty { run } => self.on_backlog_empty(run),
            Input::CommandEnded {
                run,
                ended,
                oom,
                successor,
            } => self.on_command_ended(now, run, (ended, oom), successor),
            Input::RunOver { run } => self.on_run_over(now, run),
            Input::Masters { run, count } => self.on_masters(now, run, count),
            Input::WorkerSeen { run, pid } => self.on_worker_seen(now, run, pid),
            Input::NoWorker { worker } => self.on_no_worker(now, worker),
            Input::ServerHelper(pid, name) => self.emit(Event::ServerHelper { pid, command: name }),
            Input::ServerHelpers(found) => self.state.usage.on_helpers(found),
            Input::LeftBehind(found) => self.on_left_behind(now, found),
            Input::LeavesBadly(worker) => self.on_leaves_badly(worker),
            Input::CopyFails(worker, status) => self.on_copy_fails(now, worker, status),
            Input::WorkerReady { worker } => self.on_worker_ready(now, worker),
            Input::WorkerEnded {
                worker,
                ended,
                oom,
                peak,
            } => self.on_worker_ended(now, worker, (ended, oom, peak)),
            Input::HelperKilled { worker, oom, whole } => self.on_helper_killed(worker, oom, whole),
            Input::Sampled { worker, sample } => self.on_sampled(now, worker, sample),
            Input::CapHigher { worker, limit } => self.on_cap_higher(worker, limit),
            Input::ProcessesListed(worker, largest) => self.on_processes_listed(worker, largest),
            Input::ThresholdReached { worker } => self.on_threshold_reached(now, worker),
            Input::ServerSampled { private } => self.state.usage.on_server_sampled(private),
            Input::Held { held } => self.on_held(held),
            Input::Contents(contents) => self.state.usage.on_contents(contents),
            Input::MemoryPressure => self.on_memory_pressure(now),
            Input::Charged { used, of } => self.on_charged(now, used, of),
            Input::AgentFound {
                worker,
                agent,
                expected,
            } => self.on_agent_found(now, worker, (agent, expected)),
            Input::ServerFound { pid, server } => self.on_server_found(now, pid, server),
            Input::AgentAnswered { worker, answer } => {
                self.routes.disturb(worker);
                self.on_agent_answered(now, worker, answer);
            }
            Input::Counted { worker, counts } => self.on_counted(now, worker, counts),
            Input::RoutesRead {
                worker,
                done,
                memory,
            } => self.on_routes_read(now, worker, done, memory),
            Input::Signalled(signal) => self.on_signal(now, signal),
            Input::Asked { request, ask } => self.on_asked(now, request, ask),
            Input::UpgradeChecked { request, verdict } => self.on_upgrade_checked(request, verdict),
            Input::Unwatched { workers, limit } => self.on_unwatched(workers, limit),
            Input::Failed {
                what,
                worker,
                effect,
            } => self.on_failed(worker, effect, &what),
        }
        self.on_time(now);
    }

    /// The next action to carry out, oldest first.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.out.next_action()
    }

    /// The process of a worker that is alive, or whose end is not handled yet.
    pub fn pid_of(&self, worker: WorkerId) -> Option<i32> {
        self.state.workers.get(&worker).map(Worker::pid)
    }

    /// The next event to publish, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.out.next_event()
    }

    fn on_unwatched(&mut self, workers: u32, limit: u64) {
        self.emit(Event::Unwatched { workers, limit });
    }

    fn ceiling_of(&self, worker: &Worker) -> Option<Bytes> {
        worker.ceiling(self.state.limits.ceiling.bytes, self.spec.recycle.jitter)
    }

    fn act(&mut self, action: Action) {
        self.out.act(action);
    }

    fn emit(&mut self, event: Event) {
        self.out.emit(event);
    }

    /// Emits a warning, unless there was one with the same `about` before.
    fn warn_once(&mut self, about: impl Into<String>, message: impl FnOnce() -> String) {
        if self.state.record.warn_first(about.into()) {
            self.emit(Event::Warning(message()));
        }
    }

    /// Records and counts an end, and emits an event.
    fn record_end(&mut self, end: End) {
        self.state
            .termination
            .on_end(&end, self.state.limits.cap.bytes);
        let most = self.spec.control.history;
        self.state.record.keep_end(end.clone(), most);
        self.emit(Event::Ended(end));
    }
}
