//! `copies = "auto"`: as many copies as cores and memory allow, measured on the first copy.

use std::time::Duration;

use super::scale::Scaling;
use crate::{
    supervisor::{Supervisor, event::Event, spec::Limit},
    units::{Bytes, Timestamp},
};

/// The first copy is measured when it has served for this long.
const WARM_AFTER: Duration = Duration::from_secs(5);
/// A copy without a given ceiling may grow to this many times its first memory.
const GROWTH: f64 = 2.0;

impl Supervisor {
    /// Chooses the number of copies, once for each start of the command.
    pub(super) fn choose_number(&mut self, now: Timestamp) {
        let chosen = self.state.surge.has_chosen();
        let (Some(cores), false) = (self.spec.copies_up_to, chosen) else {
            return;
        };
        // Its number of workers is known only when it has settled.
        let mut workers = self.state.workers.values().filter(|one| one.serves());
        let (Some(first), true) = (workers.next(), self.state.surge.is_calm()) else {
            return;
        };
        let since = first.life().serving_since().unwrap_or(now);
        let warm = since.later(WARM_AFTER);
        if now < warm || !first.memory().is_sure() {
            self.wake_at(now, warm);
            return;
        }
        let (private, shared) = (first.memory().value(), first.memory().shared());
        let ceiling = self.state.limits.ceiling.bytes;
        let is_given = matches!(self.spec.memory.ceiling, Limit::At(_));
        let ceiling = ceiling.filter(|ceiling| is_given && *ceiling >= private);
        let each = ceiling.unwrap_or_else(|| private.scaled(GROWTH));
        let budget = self
            .state
            .limits
            .budget
            .bytes
            .unwrap_or(self.state.limits.available);
        let others = self.total().minus(private);
        let room = budget.minus(others).minus(private);
        let fit = room
            .get()
            .checked_div(each.get())
            .unwrap_or(u64::from(cores));
        let fit = u32::try_from(fit).unwrap_or(u32::MAX);
        let number = cores.min(fit).max(1);
        let why = explain(
            (cores, fit),
            (private, shared),
            (each, ceiling.is_some()),
            budget,
        );
        self.state.surge.choose();
        self.emit(Event::Chosen {
            workers: number,
            why,
        });
        if number > 1 && !self.operator.is_scaling() {
            self.operator.scale(Scaling::to(number, None, now));
            self.continue_scaling(now);
        }
    }
}

fn explain(
    (cores, fit): (u32, u32),
    (private, shared): (Bytes, Bytes),
    (each, is_ceiling): (Bytes, bool),
    budget: Bytes,
) -> String {
    let of_each = if is_ceiling {
        "the ceiling"
    } else {
        "twice that"
    };
    format!(
        "{cores} cores; the first copy holds {private}, and {shared} that it shares; {each} for \
         each copy, which is {of_each}, and room for one replacement: {fit} fit into the budget of \
         {budget}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        servers::fleet,
        supervisor::{
            action::Action,
            input::Input,
            spec::{Kind, Spec},
            test_service::Service,
        },
        units::{Signal, Size, WorkerId},
    };

    const CORES: u32 = 4;

    /// The number of copies that is chosen, and how many more the parent is asked for. The first
    /// copy holds 100M.
    fn chosen(budget: u64, change: impl FnOnce(&mut Spec)) -> (Option<u32>, i32) {
        let mut service = Service::new(|spec| {
            spec.kind = Kind::Server(&fleet::PROFILE);
            spec.copies = Some(1);
            spec.copies_up_to = Some(CORES);
            spec.memory.budget = Limit::At(Size::Bytes(Bytes::mib(budget)));
            spec.memory.ceiling = Limit::Auto;
            change(spec);
        });
        service.seen(1, 11);
        service.ready(2, WorkerId::FIRST);
        let (mut asked, mut newest) = (0, WorkerId::FIRST);
        for second in 3..30 {
            let mut actions = service.sampled(second * 1000, 100, None);
            actions.extend(service.happens_at(second * 1000 + 500, Input::Deadline));
            for action in actions {
                if let Action::SignalCommand { signal, .. } = action {
                    assert_eq!(signal, Signal::TTIN);
                    assert!(second >= 7, "the first copy is warm");
                    asked += 1;
                    newest = newest.next();
                    service.seen(second, 20 + asked);
                    service.ready(second, newest);
                }
            }
        }
        let number = service.events.iter().find_map(|event| {
            if let Event::Chosen { workers, .. } = event {
                return Some(*workers);
            }
            None
        });
        (number, asked)
    }

    #[test]
    fn there_are_as_many_copies_as_cores_and_the_budget_allow() {
        // Twice 100M for each, and 100M for one replacement.
        assert_eq!(chosen(10_000, |_| {}), (Some(4), 3));
        assert_eq!(chosen(800, |_| {}), (Some(3), 2));
        assert_eq!(chosen(299, |_| {}), (Some(1), 0));
    }

    #[test]
    fn a_given_ceiling_is_what_a_copy_may_need() {
        let ceiling = |spec: &mut Spec| {
            spec.memory.ceiling = Limit::At(Size::Bytes(Bytes::mib(300)));
        };
        assert_eq!(chosen(800, ceiling), (Some(2), 1));
    }

    #[test]
    fn a_number_that_is_given_is_not_chosen() {
        assert_eq!(chosen(800, |spec| spec.copies_up_to = None), (None, 0));
    }
}
