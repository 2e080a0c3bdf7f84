//! Memory: looking at it in time, the cap, the trip wire, and what a worker's end says.

use std::time::Duration;

use super::{
    Supervisor,
    action::Action,
    asking::Rung,
    event::{CapMechanism, Effect, Sample},
    report::Report,
    wire::Wire,
};
use crate::units::{Bytes, Timestamp, WorkerId};

/// Pressure that goes on is told of no more often.
const TELL_PRESSURE: Duration = Duration::from_secs(60);
/// What was touched before the move and is charged elsewhere is worth telling the kernel from here.
const CHARGE_STEP: Bytes = Bytes::mib(1);

impl Supervisor {
    /// Asks for the looks that are due.
    pub(super) fn look(&mut self, now: Timestamp) {
        let jitter = self.spec.recycle.jitter;
        let actions = &mut self.actions;
        for (&id, worker) in &mut self.workers {
            let watched = worker.watched(&self.limits, jitter);
            if let Some(how) = worker.memory.poll_look(now, watched) {
                actions.push_back(Action::Look { worker: id, how });
            }
        }
    }

    pub(super) fn on_sampled(&mut self, now: Timestamp, id: WorkerId, sample: Sample) {
        let (full, spec) = (self.limits.ceiling.bytes, self.spec.recycle);
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let ceiling = worker.ceiling(full, spec.jitter);
        let watched = worker.watched(&self.limits, spec.jitter);
        worker.memory.on_sample(sample, watched);
        let value = worker.memory.value();
        let sure = worker.memory.is_sure();
        if worker.serves() && sure && worker.birth.is_none() {
            worker.birth = Some(value);
            worker.memory.set_baseline();
            worker.counted.set_baseline();
            worker.memory.forget_strikes();
            self.newborn = self.newborn.max(value);
            self.on_born(id, value);
        } else if worker.serves() && !worker.warm && worker.age(now) >= spec.min_age {
            worker.warm = true;
            worker.memory.set_baseline();
            worker.counted.set_baseline();
        }
        self.update_futile(now, id);
        // Above half its ceiling a worker may become due, or its replacement may be worth raising.
        if ceiling.is_some_and(|ceiling| value >= ceiling.scaled(0.5)) {
            self.replan = true;
        } else if let Some(worker) = self.workers.get_mut(&id) {
            // What was tried at the ceiling once may help there again.
            worker.asked.rung = Rung::default();
        }
        if sample.exact.is_some() {
            self.mind_cap(id);
        }
        self.mind_wire(now, id);
        self.mind_cap_ahead(now, id);
        self.mind_nearness(now);
    }

    /// Over the whole ceiling at birth: another one would be no better.
    fn on_born(&mut self, id: WorkerId, value: Bytes) {
        let Some(ceiling) = self
            .limits
            .ceiling
            .bytes
            .filter(|ceiling| value >= *ceiling)
        else {
            return;
        };
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.born_fat = true;
        }
        self.warn_of_ceiling(value, ceiling);
    }

    pub(super) fn warn_of_ceiling(&mut self, value: Bytes, ceiling: Bytes) {
        self.warn_once("born over the ceiling", || {
            format!(
                "a new worker holds {value} before it has done anything, and the ceiling is \
                 {ceiling}: recycling cannot help and is off for such workers; give a --ceiling \
                 above {}",
                value.scaled(1.5)
            )
        });
    }

    /// Tells the kernel the cap, less the worker's own pages that are charged to another group.
    pub(super) fn mind_cap(&mut self, id: WorkerId) {
        let by_group = self
            .machine
            .as_ref()
            .is_some_and(|machine| machine.caps != CapMechanism::Rlimit);
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let elsewhere = worker.memory.charged_elsewhere().filter(|_| by_group);
        let elsewhere = elsewhere.filter(|bytes| *bytes >= CHARGE_STEP);
        let cap = self.limits.cap.bytes.map(|cap| {
            cap.minus(elsewhere.unwrap_or_default())
                .max(cap.scaled(0.1))
        });
        let worth_it = match (worker.cap, cap) {
            (Some(told), Some(cap)) => told.get().abs_diff(cap.get()) >= CHARGE_STEP.get(),
            (told, cap) => told != cap,
        };
        if worth_it {
            worker.cap = cap;
            self.act(Action::Cap { worker: id, cap });
        }
    }

    /// The worker's group holds more than the limit that we asked for. That limit is asked for
    /// again after the next exact look, because the limit in force differs from it.
    pub(super) fn on_cap_higher(&mut self, id: WorkerId, limit: Bytes) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let wanted = worker.cap.replace(limit).unwrap_or_default();
        self.warn_once("cap below what is held", || {
            format!(
                "{id} already holds more than {wanted}, the limit that its cap asks for: the \
                 kernel limits it to {limit} until it has shrunk"
            )
        });
    }

    /// Keeps the wire where it trips just when the ceiling is reached.
    fn mind_wire(&mut self, now: Timestamp, id: WorkerId) {
        let has_wire = self.machine.as_ref().is_some_and(|machine| machine.wire);
        let jitter = self.spec.recycle.jitter;
        if !has_wire || !self.spec.memory.wire {
            return;
        }
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let (Some(ceiling), Some(sample), true) = (
            worker.watched(&self.limits, jitter),
            worker.memory.last(),
            worker.memory.is_sure(),
        ) else {
            return;
        };
        let room = ceiling.minus(worker.memory.value());
        if worker.drain().is_some() || room == Bytes::ZERO {
            return;
        }
        let trips_at = sample.cgroup.map(|charge| charge.plus(room));
        let slack = ceiling.scaled(0.02).max(Bytes::mib(1));
        let before = worker.wire;
        if !before.is_some_and(|wire| wire.fits(now, trips_at, slack)) {
            worker.wire = Some(Wire::set(now, trips_at, before));
            self.act(Action::ArmWire { worker: id, room });
        }
    }

    /// Only a reason to look: the sample decides.
    pub(super) fn on_tripped(&mut self, now: Timestamp, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            if let Some(wire) = &mut worker.wire {
                wire.trip(now);
            }
            worker.memory.look_now(now);
        }
    }

    pub(super) fn on_held(&mut self, held: Bytes) {
        self.replan |= held > self.held;
        self.held = held;
    }

    /// All are looked at, and whoever is over its ceiling goes by what is seen then.
    pub(super) fn on_pressed(&mut self, now: Timestamp) {
        for worker in self.workers.values_mut() {
            worker.memory.look_now(now);
        }
        if now >= self.tell_pressure_at {
            self.tell_pressure_at = now.later(TELL_PRESSURE);
            let budget = self.limits.budget.bytes;
            self.tell(Report::Pressed {
                memory: self.total(),
                budget,
            });
        }
    }

    /// What could not be done is told; what depends on it is off.
    pub(super) fn on_failed(&mut self, worker: Option<WorkerId>, effect: Effect, what: &str) {
        let (about, off) = match effect {
            Effect::Cap => ("cap", "; a cap is not held"),
            Effect::Budget => ("budget", "; the budget is kept by recycling only"),
            Effect::Wire => ("wire", "; the ceiling is watched by samples only"),
            Effect::Signal => ("signal", ""),
            Effect::Look => ("look", ""),
            Effect::Other => ("other", ""),
        };
        if let Some(worker) = worker.and_then(|id| self.workers.get_mut(&id)) {
            match effect {
                Effect::Cap => worker.cap_failed = true,
                Effect::Look => worker.memory.on_look_failed(),
                Effect::Budget | Effect::Wire | Effect::Signal | Effect::Other => {}
            }
        }
        let message = format!("failed to {what}{off}");
        if matches!(
            effect,
            Effect::Cap | Effect::Budget | Effect::Wire | Effect::Look
        ) {
            self.warn_once(about, || message);
        } else {
            self.tell(Report::Warning(message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::{
        event::{Ended, Event, Exact, Machine, Oom},
        spec::{Limit, MemorySpec, Spec},
    };
    use crate::units::Size;

    /// A worker that was moved into its group, with a cap of 200M.
    struct Capped {
        decider: Supervisor,
        millis: u64,
        warnings: Vec<String>,
    }

    impl Capped {
        fn new() -> Self {
            let memory = MemorySpec {
                ceiling: Limit::Off,
                cap: Limit::At(Size::Bytes(Bytes::mib(200))),
                budget: Limit::Off,
                ..MemorySpec::plain()
            };
            let spec = Spec::for_test(memory);
            let mut capped = Self {
                decider: Supervisor::new(spec, 1, Timestamp::default()),
                millis: 0,
                warnings: Vec::new(),
            };
            capped.happens(Event::Machine(Machine {
                caps: CapMechanism::CgroupV1,
                ..Machine::default()
            }));
            capped.happens(Event::Available(Bytes::mib(4000)));
            let run = crate::units::RunId(1);
            capped.happens(Event::Started { run, pid: 7 });
            capped
        }

        /// The limits that the kernel is told, in MiB.
        fn happens(&mut self, event: Event) -> Vec<u64> {
            self.millis += 1000;
            let now = Timestamp::from_nanos(self.millis * 1_000_000);
            self.decider.handle_event(now, event);
            let mut told = Vec::new();
            while let Some(action) = self.decider.poll_action() {
                if let Action::Cap { cap, .. } = action {
                    told.push(cap.unwrap_or_default().get() >> 20);
                }
            }
            while let Some(report) = self.decider.poll_report() {
                if let Report::Warning(text) = report {
                    self.warnings.push(text);
                }
            }
            told
        }

        /// An exact look at the worker; all figures in MiB.
        fn looked(&mut self, private: u64, anon: u64, charged: Option<u64>) -> Vec<u64> {
            let exact = Exact {
                private: Bytes::mib(private),
                anon: Bytes::mib(anon),
                pss: Bytes::mib(private),
                charged: charged.map(Bytes::mib),
                took: Duration::from_millis(1),
                ..Exact::default()
            };
            let sample = Sample {
                at: Timestamp::from_nanos((self.millis + 1000) * 1_000_000),
                rss: Bytes::mib(private + 300),
                anon: Bytes::mib(anon),
                exact: Some(exact),
                processes: 1,
                ..Sample::default()
            };
            let worker = WorkerId::FIRST;
            self.happens(Event::Sampled { worker, sample })
        }
    }

    #[test]
    fn a_cap_is_lowered_only_by_anonymous_pages_that_are_charged_elsewhere() {
        let mut capped = Capped::new();
        // Huge pages, swap and unnamed shared memory are not held by the group's limit, or are
        // charged here.
        assert!(capped.looked(150, 50, Some(50)).is_empty());
        // Less than a megabyte is the noise of two figures read one after the other.
        assert!(capped.looked(150, 50, Some(51)).is_empty());
        assert_eq!(capped.looked(150, 50, Some(30)), [180]);
        assert_eq!(capped.looked(150, 50, Some(50)), [200]);
        // One that was born in its group has nothing elsewhere.
        assert!(capped.looked(150, 150, None).is_empty());
        assert_eq!(capped.warnings, Vec::<String>::new());
    }

    #[test]
    fn caps_are_enforced_again_when_the_worker_whose_cap_failed_has_ended() {
        let mut capped = Capped::new();
        let is_enforced = |capped: &Capped| capped.decider.snapshot(Timestamp::default()).enforced;
        assert!(is_enforced(&capped));
        let worker = WorkerId::FIRST;
        capped.happens(Event::Failed {
            what: "write the cap".to_owned(),
            worker: Some(worker),
            effect: Effect::Cap,
        });
        assert!(!is_enforced(&capped));
        capped.happens(Event::WorkerEnded {
            worker,
            ended: Ended::Exit(1),
            oom: Oom::No,
            peak: None,
        });
        assert!(is_enforced(&capped));
    }

    #[test]
    fn a_limit_that_the_kernel_could_not_lower_is_told_once_and_asked_for_again() {
        let mut capped = Capped::new();
        assert_eq!(capped.looked(190, 190, Some(150)), [160]);
        let (worker, limit) = (WorkerId::FIRST, Bytes::mib(165));
        for _ in 0..2 {
            assert!(
                capped
                    .happens(Event::CapHigher { worker, limit })
                    .is_empty()
            );
            assert_eq!(capped.looked(190, 190, Some(150)), [160]);
        }
        let [warning] = &capped.warnings[..] else {
            panic!("{:?}", capped.warnings)
        };
        assert!(
            warning.contains("160M") && warning.contains("165M"),
            "{warning}"
        );
        assert!(!warning.contains("not held"), "{warning}");
    }
}
