//! What must always hold, and what must hold in the end. Checkers see what passes between the
//! decider and the world, and never look inside the decider.

mod asking;
mod ends;
mod leftovers;
mod loops;
mod promises;
mod serving;
mod settling;

use crate::{
    books::{Books, Turn},
    world::World,
};

/// One promise. `Err` says how it was broken.
pub(crate) trait Checker {
    /// What the promise is called.
    fn name(&self) -> &'static str;

    /// After each turn, before the world carries out its actions. `books` have taken it in.
    fn on_turn(&mut self, turn: &Turn, books: &Books, world: &World) -> Result<(), String>;

    /// When all has settled, or the service is over.
    fn at_end(&mut self, _books: &Books, _world: &World) -> Result<(), String> {
        Ok(())
    }
}

/// All of them, for one run.
pub(crate) fn all() -> Vec<Box<dyn Checker>> {
    vec![
        // First: what is noticed of a loop comes before what else is wrong with its turns.
        Box::new(loops::CannotStart::default()),
        Box::new(loops::InVain::default()),
        Box::new(ends::TheDead),
        Box::new(ends::OneCause::default()),
        Box::new(ends::Grace::default()),
        Box::new(ends::Told::default()),
        Box::new(ends::Replies::default()),
        Box::new(ends::Restarts::default()),
        Box::new(promises::AtOnce),
        Box::new(promises::MinAge),
        Box::new(promises::Room),
        Box::new(promises::Jitter),
        Box::new(promises::Strikes),
        Box::new(promises::BornFat::default()),
        Box::new(promises::DryRun),
        Box::new(serving::Suspended::default()),
        Box::new(serving::ServesOn::default()),
        Box::new(asking::OneQuestion::default()),
        Box::new(asking::RescuedStay::default()),
        Box::new(asking::Explained::default()),
        Box::new(asking::Tasks::default()),
        Box::new(asking::Windows::default()),
        Box::new(asking::Undisturbed),
        Box::new(leftovers::Leftovers::default()),
        Box::new(settling::NeverShrinks::default()),
        Box::new(settling::Settles::default()),
        Box::new(settling::Chatter::default()),
    ]
}
