//! What differs between the kinds of services: which program starts the workers and owns their
//! number, how one more worker is started and one is replaced, and what a signal or an end means.
//!
//! Code outside this module does not ask which kind a service is. A pool has its own decider in
//! `supervisor::pool`, because it owns tasks as well as workers.

mod fleet;
mod job;
mod number;
pub(crate) mod scale;
mod server;
mod stays;
mod unready;

use crate::{
    servers::profile::{Profile, Workers},
    supervisor::{
        Supervisor,
        policy::candidates::Candidate,
        spec::{Kind, ReadyWhen, RestartWhen},
        worker::lifecycle::By,
    },
    units::{Bytes, Signal, Timestamp, WorkerId},
};

impl Supervisor {
    /// The server whose children are the workers. `None`: the command itself is the worker.
    pub(crate) const fn profile(&self) -> Option<&'static Profile> {
        match self.spec.kind {
            Kind::Server(profile) => Some(profile),
            Kind::Single => None,
        }
    }

    /// The service is a single run that is not replaced. The supervisor exits with its exit status.
    pub(crate) const fn is_job(&self) -> bool {
        matches!(self.spec.restart.when, RestartWhen::Never)
    }

    /// The workers are copies of the command, started by our own parent.
    pub(crate) const fn is_fleet(&self) -> bool {
        match self.profile() {
            Some(profile) => matches!(profile.workers, Workers::Copies),
            None => false,
        }
    }

    /// The fleet is a single program, of which a second copy runs only while it is replaced. The
    /// command ends when its last copy ends.
    pub(crate) const fn is_fleet_of_one(&self) -> bool {
        self.is_fleet() && self.spec.copies.is_none()
    }

    /// The command has the parent of a fleet, and counts as a single program at the moment.
    pub(crate) const fn may_become_fleet(&self) -> bool {
        self.spec.overlap && self.is_whole_program()
    }

    /// The end of the command is the end of its only worker.
    pub(crate) const fn ends_with_worker(&self) -> bool {
        self.is_whole_program() || self.is_fleet_of_one()
    }

    /// The supervisor replaces all workers at HUP, because their server does not do so, or not
    /// gracefully.
    pub(crate) const fn reloads_at_hangup(&self) -> bool {
        match self.profile() {
            Some(profile) => profile.signals.reload.is_none(),
            None => false,
        }
    }

    /// The command with all its processes is one worker.
    pub(crate) const fn is_whole_program(&self) -> bool {
        self.profile().is_none()
    }

    /// The kind of service, as `status` names it.
    pub(crate) const fn kind_name(&self) -> &'static str {
        match (self.spec.kind, self.is_job()) {
            (Kind::Server(_), _) if self.is_fleet() => "fleet",
            (Kind::Server(_), _) => "server",
            (Kind::Single, true) => "job",
            (Kind::Single, false) => "fleet",
        }
    }

    /// The number of wanted workers. `None`: it is not known yet, because the server's number has
    /// not settled.
    pub(crate) const fn wanted_workers(&self) -> Option<u32> {
        match self.spec.kind {
            Kind::Server(_) => self.state.surge.wanted(),
            Kind::Single => Some(1),
        }
    }

    /// The worker that the command will be after its next start, with its cap. `None`: the command
    /// is a server, and its children are the workers.
    pub(crate) const fn worker_of_start(&mut self) -> Option<(WorkerId, Option<Bytes>)> {
        match self.spec.kind {
            Kind::Server(_) => None,
            Kind::Single => Some((self.state.workers.new_id(), self.state.limits.cap.bytes)),
        }
    }

    /// The signal that stops the service gracefully.
    pub(crate) fn stop_signal(&self) -> Signal {
        let configured = self.spec.stop.signal;
        let own = self.profile().and_then(|profile| profile.signals.stop);
        own.filter(|_| configured == Signal::TERM)
            .unwrap_or(configured)
    }

    /// The signal that ends one worker gracefully.
    pub(crate) fn retire_signal(&self) -> Signal {
        match self.spec.kind {
            Kind::Server(_) if self.is_fleet() => self.spec.stop.signal,
            Kind::Server(profile) => profile.retire().unwrap_or(self.spec.stop.signal),
            Kind::Single => self.spec.stop.signal,
        }
    }

    /// Whether the service is ready as soon as its first worker is ready.
    pub(crate) const fn is_ready_by_workers(&self) -> bool {
        let is_auto = matches!(self.spec.ready.when, ReadyWhen::Auto);
        self.is_fleet() || (is_auto && self.profile().is_some())
    }

    /// Observes a server's number of workers.
    pub(crate) fn check_number(&mut self, now: Timestamp) {
        if let Kind::Server(_) = self.spec.kind {
            self.observe_number(now);
        }
    }

    /// When to observe the number of workers again.
    pub(crate) fn check_number_at(&self) -> Option<Timestamp> {
        match self.spec.kind {
            Kind::Server(_) => self.observe_number_at(),
            Kind::Single => None,
        }
    }

    /// Takes one step towards replacing the candidates. The next step depends on its result.
    pub(crate) fn replace_next(&mut self, now: Timestamp, candidates: &[Candidate]) {
        match self.spec.kind {
            Kind::Single => {
                self.warn_of_unused_sockets(now);
                self.replace_program(now, candidates);
            }
            Kind::Server(profile) => {
                self.set_boot_priority(now, candidates);
                self.warn_of_unready(now);
                self.choose_number(now);
                self.replace_worker(now, profile, candidates);
            }
        }
    }

    /// Asks a draining worker to exit.
    pub(crate) fn ask_to_exit(&mut self, now: Timestamp, worker: WorkerId, by: By) {
        match self.spec.kind {
            // The parent of the only copy would take its end for the end of the program.
            Kind::Server(_) if self.is_fleet_of_one() && self.count().live() == 1 => {
                self.state.service.expect_end();
                self.ask_program_to_exit();
            }
            Kind::Server(profile) => self.ask_worker_to_exit(now, profile, worker, by),
            Kind::Single => self.ask_program_to_exit(),
        }
    }

    /// Whether a worker that is asked to exit now has been replaced already.
    pub(crate) const fn is_replaced_first(&self) -> bool {
        match self.spec.kind {
            Kind::Server(_) => self.state.surge.raised().is_some(),
            Kind::Single => false,
        }
    }

    /// Whether all wanted workers serve and none drains.
    pub(crate) fn has_all_workers(&self) -> bool {
        match self.spec.kind {
            Kind::Server(_) => self.server_has_all_workers(),
            Kind::Single => self.state.service.is_ready(),
        }
    }
}
