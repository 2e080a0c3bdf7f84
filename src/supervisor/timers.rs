//! All deadlines in one table: for each timer, when it is due and what happens then.
//!
//! Deadlines are not stored. Each is derived from the state, such as from the end of a drain's
//! grace period. So no timer outlives its reason, an upgrade hands over no timers, and a changed
//! configuration takes effect at once.

use crate::supervisor::Supervisor;
use crate::units::Timestamp;

/// The timers. If several are due at once, they expire in this order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Timer {
    /// A drain's grace period is over: the worker is killed.
    Drain,
    /// The next start, the kill of remaining processes, or a check of readiness is due.
    Service,
    /// The grace period of a stop is over, or half of it.
    Stop,
    /// A worker's memory is sampled.
    Sample,
    /// A worker's agent is searched for.
    FindAgent,
    /// A request to an agent is given up.
    GiveUpRequest,
    /// The page of counters is read.
    ReadCounts,
    /// The counters of routes are read.
    ReadRoutes,
    /// A suspension of recycling ends.
    Resume,
    /// The number of workers has settled, or an expected change of it has not come.
    Number,
    /// It is decided again which workers are replaced.
    Plan,
    /// A window of tracing opens or closes.
    Trace,
    /// The termination message is written.
    TerminationMessage,
}

impl Timer {
    const ALL: [Self; 13] = [
        Self::Drain,
        Self::Service,
        Self::Stop,
        Self::Sample,
        Self::FindAgent,
        Self::GiveUpRequest,
        Self::ReadCounts,
        Self::ReadRoutes,
        Self::Resume,
        Self::Number,
        Self::Plan,
        Self::Trace,
        Self::TerminationMessage,
    ];

    /// Whether the timer also depends on what an input has changed, and so expires in each turn.
    const fn expires_in_each_turn(self) -> bool {
        matches!(self, Self::Number | Self::Trace)
    }
}

impl Supervisor {
    /// When to hand in [`crate::supervisor::input::Input::Deadline`] at the latest.
    pub fn poll_deadline(&self) -> Option<Timestamp> {
        Timer::ALL
            .into_iter()
            .filter_map(|timer| self.due_at(timer))
            .min()
    }

    /// Does all that is due by the time, or because of what an input has changed.
    pub(super) fn on_time(&mut self, now: Timestamp) {
        for timer in Timer::ALL {
            let is_due = self.due_at(timer).is_some_and(|at| at <= now);
            if is_due || timer.expires_in_each_turn() {
                self.expire(now, timer);
            }
        }
    }

    fn due_at(&self, timer: Timer) -> Option<Timestamp> {
        match timer {
            Timer::Drain => self.end_drains_at(),
            Timer::Service => self.advance_service_at(),
            Timer::Stop => self.enforce_stop_at(),
            Timer::Sample => self.sample_at(),
            Timer::FindAgent => self.find_agents_at(),
            Timer::GiveUpRequest => self.give_up_requests_at(),
            Timer::ReadCounts => self.read_counts_at(),
            Timer::ReadRoutes => self.read_routes_at(),
            Timer::Resume => self.resume_at(),
            Timer::Number => self.check_number_at(),
            Timer::Plan => self.replan_at(),
            Timer::Trace => self.trace_at(),
            Timer::TerminationMessage => self.write_termination_message_at(),
        }
    }

    fn expire(&mut self, now: Timestamp, timer: Timer) {
        match timer {
            Timer::Drain => self.end_drains(now),
            Timer::Service => self.advance_service(now),
            Timer::Stop => self.enforce_stop(now),
            Timer::Sample => self.sample(now),
            Timer::FindAgent => self.find_agents(now),
            Timer::GiveUpRequest => self.give_up_requests(now),
            Timer::ReadCounts => self.read_counts(now),
            Timer::ReadRoutes => self.read_routes(now),
            Timer::Resume => self.resume(),
            Timer::Number => self.check_number(now),
            Timer::Plan => self.replan(now),
            Timer::Trace => self.trace(now),
            Timer::TerminationMessage => self.write_termination_message(now),
        }
    }
}
