//! The limits in force: what was wished for, and what follows from it (DESIGN §3).

use super::{
    Supervisor,
    action::Action,
    futile::Futile,
    report::{Effective, Limits, Report},
    service::Phase,
    spec::{Kind, Limit, MemorySpec},
};
use crate::units::Bytes;

/// Supervisor and keeper are charged with about 8 MiB, their program included; twice that stays
/// free where a tenth is less.
const OWN: Bytes = Bytes::mib(16);

impl Supervisor {
    /// Works the limits out again and lets the kernel know what changed.
    pub(super) fn derive_limits(&mut self) {
        let Some(available) = self.available else {
            return;
        };
        let workers = match self.spec.kind {
            Kind::Server(_) => self.spare.wanted(),
            Kind::Single => Some(1),
        };
        let here = Circumstances {
            available,
            workers,
            job: self.is_job(),
        };
        let limits = derive(&self.spec.memory, here);
        if limits != self.limits {
            self.take_limits(limits);
        }
        if self.told_limits.as_ref() != Some(&self.limits) && workers.is_some() {
            self.told_limits = Some(self.limits.clone());
            self.tell(Report::Limits(self.limits.clone()));
        }
    }

    pub(super) fn take_limits(&mut self, limits: Limits) {
        let begun = !matches!(self.service.phase, Phase::Idle);
        if begun && limits.budget.bytes != self.limits.budget.bytes {
            self.act(Action::Budget {
                budget: limits.budget.bytes,
            });
        }
        self.limits = limits;
        // What did not help under the old limits may help under the new ones.
        self.futile = Futile::default();
        let ids: Vec<_> = self.workers.keys().copied().collect();
        for id in ids {
            self.mind_cap(id);
        }
        self.replan = true;
    }
}

/// What is derived depends on these.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances {
    /// What the service may have.
    pub(super) available: Bytes,
    /// How many workers there are to be, once that is known.
    pub(super) workers: Option<u32>,
    /// It is one run that is not replaced.
    pub(super) job: bool,
}

/// The limits that follow from the wishes. A lower limit is never above a higher one.
pub(super) fn derive(wished: &MemorySpec, here: Circumstances) -> Limits {
    let given = |limit: Limit| match limit {
        Limit::At(size) => Some(effective(size.of(here.available), format!("given: {size}"))),
        Limit::Off => Some(Effective {
            bytes: None,
            from: "switched off".to_owned(),
        }),
        Limit::Auto => None,
    };
    let budget = given(wished.budget).unwrap_or_else(|| budget_of(here.available));
    let asked_cap = given(wished.cap);
    let mut ceiling = given(wished.ceiling).unwrap_or_else(|| {
        let cap = asked_cap.as_ref().and_then(|cap| cap.bytes);
        fair_share(budget.bytes.unwrap_or(here.available), cap, here)
    });
    let mut cap = asked_cap.unwrap_or_else(|| match (ceiling.bytes, budget.bytes) {
        (Some(ceiling), _) => effective(ceiling.plus(ceiling), "twice the ceiling".to_owned()),
        (None, Some(budget)) => effective(budget, "the budget".to_owned()),
        (None, None) => Effective {
            bytes: None,
            from: "no ceiling, no budget".to_owned(),
        },
    });
    hold_below(&mut cap, &budget, "the budget");
    hold_below(&mut ceiling, &cap, "the cap");
    Limits {
        available: here.available,
        ceiling,
        cap,
        budget,
    }
}

/// Nine tenths, or in a small container what the supervisor and the keeper leave.
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

/// The budget shared by one more than there are workers, so that one overlap has room.
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
            from: "not known before all workers are up".to_owned(),
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
            format!("{budget} shared by {workers} workers and one overlap"),
        ),
    }
}

const fn effective(bytes: Bytes, from: String) -> Effective {
    Effective {
        bytes: Some(bytes),
        from,
    }
}

/// A limit that what the service may have has shrunk below is held at the next higher one.
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
        let wished = MemorySpec {
            ceiling,
            cap,
            budget,
            measure: Measure::Private,
            strikes: 1,
            swap: Limit::Off,
            wire: true,
            gc_first: true,
        };
        let here = Circumstances {
            available: Bytes::mib(1000),
            workers,
            job,
        };
        let limits = derive(&wished, here);
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
    fn without_a_wish_the_budget_is_shared_with_room_for_one_overlap() {
        let auto = (Limit::Auto, Limit::Auto, Limit::Auto);
        check(auto, (Some(4), false), (Some(180), Some(360), Some(900)));
        check(auto, (None, false), (None, Some(900), Some(900)));
        check(auto, (Some(1), true), (None, Some(900), Some(900)));
    }

    #[test]
    fn in_a_small_container_the_budget_leaves_room_for_us() {
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
    fn a_given_cap_halves_into_the_ceiling() {
        check(
            (Limit::Auto, at(200), Limit::Auto),
            (Some(2), false),
            (Some(100), Some(200), Some(900)),
        );
    }

    #[test]
    fn what_is_switched_off_stays_off() {
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
    fn limits_follow_when_the_service_may_have_less() {
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
