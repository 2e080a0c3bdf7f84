//! The limits in force: the configured ones, and those that are derived from them.

use crate::supervisor::{
    Supervisor,
    action::Action,
    event::{Effective, Event, Limits},
    spec::{Limit, MemorySpec},
};
use crate::units::Bytes;

/// The supervisor and the keeper need about 8 MiB, including their program. Twice that stays free
/// if a tenth of the available memory is less.
const OWN: Bytes = Bytes::mib(16);

impl Supervisor {
    /// Derives the limits again, and tells the kernel what has changed.
    pub(crate) fn derive_limits(&mut self) {
        let Some(available) = self.here.available else {
            return;
        };
        let workers = self.wanted_workers();
        let here = Circumstances {
            available,
            workers,
            job: self.is_job(),
            lifted: self.is_whole_program() && self.state.service.is_ceiling_lifted(),
        };
        let limits = derive(&self.spec.memory, here);
        if limits != self.state.limits {
            self.take_limits(limits);
        }
        if workers.is_some() && self.state.record.are_new(&self.state.limits) {
            self.emit(Event::Limits(self.state.limits.clone()));
        }
    }

    pub(crate) fn take_limits(&mut self, limits: Limits) {
        let begun = !self.state.service.is_idle();
        if begun && limits.budget.bytes != self.state.limits.budget.bytes {
            self.act(Action::Budget {
                budget: limits.budget.bytes,
            });
        }
        self.state.set_limits(limits);
        let ids: Vec<_> = self.state.workers.keys().copied().collect();
        for id in ids {
            self.check_cap(id);
        }
        self.plan.touch();
    }
}

/// What the derived limits depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Circumstances {
    /// The memory available to the service.
    pub(crate) available: Bytes,
    /// The number of workers, once it is known.
    pub(crate) workers: Option<u32>,
    /// The service is a job, which is not recycled.
    pub(crate) job: bool,
    /// The command is a tree of processes to which the ceiling does not apply.
    pub(crate) lifted: bool,
}

/// Derives the limits from the settings. The ceiling is never above the cap, and the cap never
/// above the budget.
pub(crate) fn derive(settings: &MemorySpec, here: Circumstances) -> Limits {
    let given = |limit: Limit| match limit {
        Limit::At(size) => Some(effective(size.of(here.available), format!("given: {size}"))),
        Limit::Off => Some(Effective {
            bytes: None,
            from: "switched off".to_owned(),
        }),
        Limit::Auto => None,
    };
    let budget = given(settings.budget).unwrap_or_else(|| budget_of(here.available));
    let asked_cap = given(settings.cap);
    let mut ceiling = given(settings.ceiling).unwrap_or_else(|| {
        let cap = asked_cap.as_ref().and_then(|cap| cap.bytes);
        fair_share(budget.bytes.unwrap_or(here.available), cap, here)
    });
    let mut cap = asked_cap.unwrap_or_else(|| match (ceiling.bytes, budget.bytes) {
        (Some(ceiling), _) if !here.lifted => {
            effective(ceiling.plus(ceiling), "twice the ceiling".to_owned())
        }
        (_, Some(budget)) => effective(budget, "the budget".to_owned()),
        (_, None) => Effective {
            bytes: None,
            from: "no ceiling applies, no budget".to_owned(),
        },
    });
    if here.lifted && ceiling.bytes.is_some() {
        ceiling
            .from
            .push_str(", but not for several processes together");
    }
    hold_below(&mut cap, &budget, "the budget");
    hold_below(&mut ceiling, &cap, "the cap");
    Limits {
        available: here.available,
        ceiling,
        cap,
        budget,
    }
}

/// Nine tenths of the available memory, or less in a small container: the supervisor and the keeper
/// need the rest.
fn budget_of(available: Bytes) -> Effective {
    let most = available.scaled(0.9);
    let rest = available.minus(OWN).max(available.scaled(0.5));
    if rest < most {
        let from = format!(
            "{available} less {} for supervise itself",
            available.minus(rest)
        );
        return effective(rest, from);
    }
    effective(most, format!("90% of {available}"))
}

/// The budget divided by the number of workers and one more, so that a replacement can start before
/// the old worker exits.
fn fair_share(budget: Bytes, cap: Option<Bytes>, here: Circumstances) -> Effective {
    if here.job {
        return Effective {
            bytes: None,
            from: "a job is not recycled".to_owned(),
        };
    }
    let Some(workers) = here.workers else {
        return Effective {
            bytes: None,
            from: "not known before all workers have started".to_owned(),
        };
    };
    let shares = workers.saturating_add(1);
    let fair = Bytes(budget.get().checked_div(u64::from(shares)).unwrap_or(0));
    match cap {
        Some(cap) if cap.scaled(0.5) < fair => {
            effective(cap.scaled(0.5), "half the cap".to_owned())
        }
        _ => effective(
            fair,
            format!("{budget} divided by {workers} workers and one replacement"),
        ),
    }
}

const fn effective(bytes: Bytes, from: String) -> Effective {
    Effective {
        bytes: Some(bytes),
        from,
    }
}

/// Lowers a limit to the next higher one, in case the available memory has shrunk below it.
fn hold_below(limit: &mut Effective, higher: &Effective, name: &str) {
    if let (Some(own), Some(above)) = (limit.bytes, higher.bytes)
        && own > above
    {
        limit.bytes = Some(above);
        limit.from = format!("{name} ({} would be above it)", limit.from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{supervisor::spec::Measure, units::Size};

    fn check(
        (ceiling, cap, budget): (Limit, Limit, Limit),
        (workers, job): (Option<u32>, bool),
        wanted: (Option<u64>, Option<u64>, Option<u64>),
    ) {
        let settings = MemorySpec {
            ceiling,
            cap,
            budget,
            measure: Measure::Private,
            consecutive_samples: 1,
            swap: Limit::Off,
            threshold: true,
            gc_first: true,
        };
        let here = Circumstances {
            available: Bytes::mib(1000),
            workers,
            job,
            lifted: false,
        };
        let limits = derive(&settings, here);
        let mib = |limit: &Effective| limit.bytes.map(|bytes| bytes.get() >> 20);
        assert_eq!(
            (mib(&limits.ceiling), mib(&limits.cap), mib(&limits.budget)),
            wanted
        );
    }

    fn at(mib: u64) -> Limit {
        Limit::At(Size::Bytes(Bytes::mib(mib)))
    }

    #[test]
    fn default_limits_divide_the_budget_with_room_for_one_replacement() {
        let auto = (Limit::Auto, Limit::Auto, Limit::Auto);
        check(auto, (Some(4), false), (Some(180), Some(360), Some(900)));
        check(auto, (None, false), (None, Some(900), Some(900)));
        check(auto, (Some(1), true), (None, Some(900), Some(900)));
    }

    #[test]
    fn in_a_small_container_the_budget_leaves_room_for_the_supervisor() {
        let budget = |mib: u64| {
            let budget = budget_of(Bytes::mib(mib));
            let bytes = budget.bytes.unwrap().get() >> 20;
            (bytes, budget.from)
        };
        assert_eq!(budget(1000), (900, "90% of 1000M".to_owned()));
        assert_eq!(budget(160), (144, "90% of 160M".to_owned()));
        let own = "128M less 16M for supervise itself".to_owned();
        assert_eq!(budget(128), (112, own));
        assert_eq!(budget(64).0, 48);
        assert_eq!(budget(16).0, 8);
    }

    #[test]
    fn the_cap_is_twice_a_given_ceiling_but_never_above_the_budget() {
        check(
            (at(300), Limit::Auto, Limit::Auto),
            (Some(2), false),
            (Some(300), Some(600), Some(900)),
        );
        check(
            (at(300), Limit::Auto, at(500)),
            (Some(2), false),
            (Some(300), Some(500), Some(500)),
        );
    }

    #[test]
    fn the_ceiling_is_half_of_a_given_cap() {
        check(
            (Limit::Auto, at(200), Limit::Auto),
            (Some(2), false),
            (Some(100), Some(200), Some(900)),
        );
    }

    #[test]
    fn a_limit_that_is_switched_off_stays_off() {
        check(
            (at(300), Limit::Off, Limit::Off),
            (Some(2), false),
            (Some(300), None, None),
        );
        check(
            (Limit::Off, Limit::Off, Limit::Off),
            (Some(2), false),
            (None, None, None),
        );
    }

    #[test]
    fn limits_shrink_with_the_available_memory() {
        check(
            (at(800), at(2000), at(3000)),
            (Some(2), false),
            (Some(800), Some(2000), Some(3000)),
        );
        let shrunk = Limit::At(Size::Percent(50.0));
        check(
            (at(800), at(2000), shrunk),
            (Some(2), false),
            (Some(500), Some(500), Some(500)),
        );
    }
}
