//! The state of the decider: one value, which an upgrade hands over to the new binary.
//!
//! The settings and the machine are not part of the state, because the new binary reads them again.
//! Timestamps keep their meaning, because both binaries use the machine's monotonic clock.

use serde::{Deserialize, Serialize};

use crate::servers::profile::Profile;
use crate::supervisor::{
    Supervisor,
    agents::Agents,
    event::Limits,
    leftovers::Leftovers,
    policy::{end_loop::EndLoop, in_vain::InVain, surge::Surge, suspension::Starts},
    record::Record,
    service::Service,
    spec::Spec,
    termination_message::TerminationMessage,
    usage::Usage,
    worker::Workers,
};
use crate::units::{ReportId, Timestamp};

/// The state of the decider.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct State {
    /// The limits in force.
    pub(super) limits: Limits,
    pub(super) service: Service,
    pub(super) workers: Workers,
    pub(super) surge: Surge,
    pub(super) usage: Usage,
    /// Recycles that did not help.
    pub(super) in_vain: InVain,
    /// Ends of workers that may be a loop.
    pub(super) loops: EndLoop,
    /// Whether the application can start.
    pub(super) starts: Starts,
    pub(super) agents: Agents,
    pub(super) record: Record,
    pub(super) leftovers: Leftovers,
    pub(super) termination: TerminationMessage,
}

impl State {
    /// The state before the first start. `seed` is for the jitter.
    pub(super) fn new(spec: &Spec, seed: u64, now: Timestamp) -> Self {
        Self {
            limits: Limits::default(),
            service: Service::new(spec.restart),
            workers: Workers::new(seed),
            surge: Surge::new(now),
            usage: Usage::default(),
            in_vain: InVain::default(),
            loops: EndLoop::default(),
            starts: Starts::default(),
            agents: Agents::default(),
            record: Record::default(),
            leftovers: Leftovers::default(),
            termination: TerminationMessage::new(now),
        }
    }
}

impl State {
    /// Sets other limits. A recycle that did not help under the old limits may help under these.
    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.forget_recycles();
    }

    /// Forgets the recycles that did not help.
    pub(super) fn forget_recycles(&mut self) {
        self.in_vain = InVain::default();
    }

    /// The server that the command was found to run, while the settings do not name it.
    pub fn server_found(&self) -> Option<&'static Profile> {
        self.service.server_found()
    }
}

impl Supervisor {
    /// The state that a new binary needs to continue.
    pub fn hand_over(&self) -> State {
        self.state.clone()
    }

    /// Continues with the state of an earlier supervisor. As after [`Supervisor::new`], the first
    /// two inputs are `Machine` and `Available`, but they do not start the command.
    pub fn take_over(spec: Spec, now: Timestamp, mut state: State) -> Self {
        state.service.on_taken_over(spec.restart);
        state.termination.on_taken_over();
        state.workers.on_taken_over(now, spec.memory.measure);
        let mut supervisor = Self::new(spec, 0, now);
        supervisor.state = state;
        supervisor.plan.touch();
        supervisor
    }

    /// Sets the id of the next report. Reports of an earlier supervisor have the ids before.
    pub fn number_reports_from(&mut self, next: ReportId) {
        self.state.agents.number_from(next);
    }

    /// The settings of the service.
    pub const fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Why the state cannot be handed over at the moment. `None`: it can.
    pub fn holds_up_upgrade(&self) -> Option<&'static str> {
        if self.state.service.is_stopping() {
            Some("the service is stopping")
        } else if self.state.service.pid().is_none() || !self.state.service.is_ready() {
            Some("the service is not ready")
        } else if self.operator.has_waiting_requests() {
            Some("a recycle, reload or scale is in progress")
        } else if self
            .state
            .workers
            .values()
            .any(|one| !one.requests().waiting().is_empty())
        {
            Some("a memory report is in progress")
        } else {
            None
        }
    }
}
