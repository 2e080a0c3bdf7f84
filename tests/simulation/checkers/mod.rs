//! What must always hold, and what must hold at the end. Checkers see what passes between the
//! decider and the world, and never look inside the decider.

mod agent_requests;
mod ends;
mod leftovers;
mod loops;
mod promises;
mod reached_cap;
mod serving;
mod settling;

use crate::{
    record::{Record, Turn},
    world::World,
};

/// Checks one promise. `Err` says how it was broken.
pub(crate) trait Checker {
    /// The name of the promise.
    fn name(&self) -> &'static str;

    /// Called after each turn, before the world carries out its actions. `record` includes it.
    fn on_turn(&mut self, turn: &Turn, record: &Record, world: &World) -> Result<(), String>;

    /// Called when the service is steady again, or has ended.
    fn at_end(&mut self, _books: &Record, _world: &World) -> Result<(), String> {
        Ok(())
    }
}

/// All checkers, for one run.
pub(crate) fn all() -> Vec<Box<dyn Checker>> {
    vec![
        // First, because a loop breaks other promises too, and the loop is the better message.
        Box::new(loops::CannotStart::default()),
        Box::new(loops::RecycleLoop::default()),
        Box::new(ends::GoneTargets),
        Box::new(ends::OneCause::default()),
        Box::new(ends::Grace::default()),
        Box::new(ends::StopSignal::default()),
        Box::new(ends::Replies::default()),
        Box::new(ends::Restarts::default()),
        Box::new(promises::MaxUnavailable),
        Box::new(promises::MinAge),
        Box::new(promises::Room),
        Box::new(promises::Jitter),
        Box::new(promises::ConsecutiveSamples),
        Box::new(promises::OverAtStart::default()),
        Box::new(promises::DryRun),
        Box::new(serving::Suspended::default()),
        Box::new(serving::ServesOn::default()),
        Box::new(agent_requests::OneRequest::default()),
        Box::new(agent_requests::RescuedStays::default()),
        Box::new(agent_requests::Explained::default()),
        Box::new(agent_requests::Tasks::default()),
        Box::new(agent_requests::Windows::default()),
        Box::new(agent_requests::NoWorkerWaits::default()),
        Box::new(agent_requests::Undisturbed),
        Box::new(leftovers::Leftovers::default()),
        Box::new(settling::NeverShrinks::default()),
        Box::new(settling::Settles::default()),
        Box::new(settling::Chatter::default()),
    ]
}
