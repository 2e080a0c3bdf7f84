//! New workers: discovered, adopted and ready.

use super::{ORPHAN_GRACE, Phase, Service, Stopping};
use crate::servers::{PROFILES, fleet, profile::Profile};
use crate::supervisor::{
    Supervisor,
    action::{Action, Priority},
    cause::Cause,
    event::Event,
    spec::Kind,
    worker::{Identity, Worker, lifecycle::Step, memory::Memory},
};
use crate::units::{RunId, Timestamp, WorkerId};

impl Service {
    /// The command runs this server.
    pub(crate) fn on_server_found(&mut self, server: &Profile) {
        self.found = Some(server.name.to_owned());
    }

    /// Since when the command runs.
    pub(crate) const fn started(&self) -> Option<Timestamp> {
        match self.phase {
            Phase::Running { since, .. } => Some(since),
            Phase::Idle
            | Phase::Starting
            | Phase::Clearing { .. }
            | Phase::Waiting { .. }
            | Phase::Over => None,
        }
    }

    /// The command is a tree of processes that was over its ceiling from its start.
    pub(crate) const fn on_ceiling_lifted(&mut self) {
        self.ceiling_lifted = true;
    }

    pub(crate) const fn is_ceiling_lifted(&self) -> bool {
        self.ceiling_lifted
    }

    /// The server that the command was found to run.
    pub(crate) fn server_found(&self) -> Option<&'static Profile> {
        let name = self.found.as_deref()?;
        let mut all = PROFILES.into_iter().chain([&fleet::PROFILE]);
        all.find(|server| server.name == name)
    }
}

impl Supervisor {
    /// Adds a process as a worker.
    pub(crate) fn add_worker(&mut self, now: Timestamp, id: WorkerId, pid: i32) {
        let identity = Identity {
            id,
            pid,
            slot: self.state.workers.free_slot(),
            seen: now,
            jitter: self.state.workers.jitter_of(id),
        };
        let memory = Memory::new(self.spec.memory.measure, self.is_whole_program(), now);
        let worker = Worker::new(identity, memory, self.state.limits.cap.bytes);
        self.state.workers.insert(id, worker);
        self.emit(Event::WorkerSeen { worker: id, pid });
    }

    pub(crate) fn on_worker_seen(&mut self, now: Timestamp, run: RunId, pid: i32) {
        if !self.state.service.is_current(run) {
            return;
        }
        let id = self.state.workers.new_id();
        self.add_worker(now, id, pid);
        let cap = self.state.limits.cap.bytes;
        self.act(Action::Adopt {
            run,
            worker: id,
            pid,
            cap,
        });
        if matches!(self.state.service.phase, Phase::Clearing { .. }) {
            let until = now.later(ORPHAN_GRACE);
            self.drain_by_signal(now, id, Cause::Stop, until);
        }
        self.state.surge.on_change(now);
        self.plan.touch();
    }

    pub(crate) fn on_no_worker(&mut self, now: Timestamp, worker: WorkerId) {
        if let Some(helper) = self.state.workers.remove(&worker) {
            self.refuse_reports(&helper, "it is not a worker but a helper of its server");
            self.operator.on_gone(worker);
            self.state.surge.on_change(now);
            self.plan.touch();
        }
    }

    pub(crate) fn on_worker_ready(&mut self, now: Timestamp, id: WorkerId) {
        let Some(worker) = self.state.workers.get_mut(&id) else {
            return;
        };
        if !worker.step(now, Step::Ready) {
            return;
        }
        let after = worker.age(now);
        worker.memory_mut().sample_now(now);
        let priority = Priority::Normal;
        if worker.kernel_mut().set_priority(priority) {
            let worker = id;
            self.act(Action::Prioritize { worker, priority });
        }
        self.state.loops.on_ready();
        self.state.workers.on_booted(after);
        self.emit(Event::WorkerReady { worker: id, after });
        self.note_successful_start(now, id);
        self.state.surge.on_change(now);
        self.plan.touch();
        if self.is_ready_by_workers() {
            self.on_service_ready(now, self.state.service.run);
        }
        if self.profile().is_some() {
            self.stop_late_worker(now, id);
        }
    }

    /// RACE: a stopping server signals its workers to exit. A worker that was just forked does not
    /// handle the signal yet, and would keep serving until the grace period is over.
    fn stop_late_worker(&mut self, now: Timestamp, id: WorkerId) {
        let stop = self.state.service.stop.as_ref();
        if stop.is_some_and(Stopping::is_told) {
            // The worker gets a full grace period, but the stop's own grace period still applies.
            let until = now.later(self.spec.stop.grace);
            self.drain_by_signal(now, id, Cause::Stop, until);
        }
    }

    /// The command is an unknown script or launcher and counts as one worker, and it has started a
    /// known server. From now on the server's children are the workers. Or it is a program that
    /// accepts connections at the sockets of the supervisor: from now on it is a fleet of one copy.
    ///
    /// RACE: the worker may be draining, or the service stops. The server is then found again after
    /// the next start.
    pub(crate) fn on_server_found(&mut self, now: Timestamp, pid: i32, server: &'static Profile) {
        let running = self.state.service.pid().is_some() && !self.state.service.is_stopping();
        let mut workers = self.state.workers.values();
        let Some(command) = workers.next().filter(|one| running && !one.is_leaving()) else {
            return;
        };
        let worker = command.id();
        self.state.service.on_server_found(server);
        self.spec.kind = Kind::Server(server);
        self.state.surge.forget(now);
        self.state.forget_recycles();
        let why = "it is a server, and its children are the workers";
        self.refuse_recycles(&format!("{worker}: {why}"));
        if let Some(command) = self.state.workers.remove(&worker) {
            self.refuse_reports(&command, why);
        }
        self.act(Action::TreatAsServer { worker, server });
        self.emit(Event::ServerFound {
            pid,
            server: server.name.to_owned(),
        });
        self.derive_limits();
        self.plan.touch();
    }

    /// The command starts again, and counts as one worker until its server is found again.
    pub(super) fn forget_server(&mut self) {
        if self.state.service.found.take().is_some() {
            self.spec.kind = Kind::Single;
        }
    }

    pub(crate) fn on_masters(&mut self, now: Timestamp, run: RunId, count: u32) {
        if self.state.service.is_current(run) {
            self.state.surge.on_masters(now, count);
            self.plan.touch();
        }
    }
}

#[cfg(test)]
#[path = "arrivals_tests.rs"]
mod tests;
