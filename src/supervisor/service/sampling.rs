//! Memory: when to sample it, the cap, the threshold, and what the kernel reports about it.

use crate::supervisor::{
    Supervisor,
    action::Action,
    event::Event,
    input::{CapMechanism, Effect, Sample},
    worker::kernel::CAP_STEP,
};
use crate::units::{Bytes, Timestamp, WorkerId};

impl Supervisor {
    /// Takes the samples that are due.
    pub(crate) fn sample(&mut self, now: Timestamp) {
        let jitter = self.spec.recycle.jitter;
        for (&id, worker) in self.state.workers.iter_mut() {
            let watched = worker.watched(&self.state.limits, jitter);
            if let Some(how) = worker.memory_mut().poll_sample(now, watched) {
                self.out.act(Action::Sample { worker: id, how });
            }
        }
    }

    pub(crate) fn sample_at(&self) -> Option<Timestamp> {
        let workers = self.state.workers.values();
        workers.map(|worker| worker.memory().sample_at()).min()
    }

    pub(crate) fn on_sampled(&mut self, now: Timestamp, id: WorkerId, sample: Sample) {
        let (full, spec) = (self.state.limits.ceiling.bytes, self.spec.recycle);
        let Some(worker) = self.state.workers.get_mut(&id) else {
            return;
        };
        let ceiling = worker.ceiling(full, spec.jitter);
        let watched = worker.watched(&self.state.limits, spec.jitter);
        worker.memory_mut().on_sample(sample, watched);
        let value = worker.memory().value();
        let sure = worker.memory().is_sure();
        if worker.serves() && sure && worker.ceiling_state().memory_when_ready().is_none() {
            worker.ceiling_state_mut().on_ready(value);
            worker.set_baseline();
            worker.memory_mut().forget_samples_over();
            self.state.workers.on_memory_when_ready(value);
            self.check_memory_when_ready(id, value);
        } else if worker.serves()
            && !worker.ceiling_state().is_warm()
            && worker.age(now) >= spec.min_age
        {
            worker.ceiling_state_mut().on_warm();
            worker.set_baseline();
        }
        self.update_ceiling_state(now, id);
        // A worker above half its ceiling may become a candidate, or its replacement may have to be
        // started early.
        if ceiling.is_some_and(|ceiling| value >= ceiling.scaled(0.5)) {
            self.plan.touch();
        } else if let Some(worker) = self.state.workers.get_mut(&id) {
            // Collecting garbage at the ceiling may help again.
            worker.requests_mut().forget_collected();
        }
        if sample.exact.is_some() || self.is_whole_program() {
            self.check_cap(id);
        }
        self.check_threshold(now, id);
        self.check_approach_to_cap(now, id);
        self.check_nearness(now);
    }

    /// If a worker is over its ceiling when it becomes ready, a replacement would be as large. So
    /// such a worker is not compared with the ceiling.
    fn check_memory_when_ready(&mut self, id: WorkerId, value: Bytes) {
        let Some(ceiling) = self
            .state
            .limits
            .ceiling
            .bytes
            .filter(|ceiling| value >= *ceiling)
        else {
            return;
        };
        if let Some(worker) = self.state.workers.get_mut(&id) {
            worker.ceiling_state_mut().exempt();
        }
        self.warn_of_ceiling(value, ceiling);
    }

    pub(crate) fn warn_of_ceiling(&mut self, value: Bytes, ceiling: Bytes) {
        self.warn_once("born over the ceiling", || {
            format!(
                "a new worker holds {value} before it has done anything, and the ceiling is \
                 {ceiling}: recycling cannot help and is off for such workers. hint: give a \
                 --ceiling above {}",
                value.scaled(1.5)
            )
        });
    }

    /// Writes the worker's cap, less its own pages that are charged to another cgroup, if it has
    /// changed.
    pub(crate) fn check_cap(&mut self, id: WorkerId) {
        let by_group = self
            .here
            .machine
            .as_ref()
            .is_some_and(|machine| machine.caps != CapMechanism::Rlimit);
        let worker = self.state.workers.get(&id);
        let uncapped = worker.is_some_and(|worker| self.is_without_derived_cap(worker));
        let Some(worker) = self.state.workers.get_mut(&id) else {
            return;
        };
        let elsewhere = worker.memory().charged_elsewhere().filter(|_| by_group);
        let elsewhere = elsewhere.filter(|bytes| *bytes >= CAP_STEP);
        let cap = self.state.limits.cap.bytes.filter(|_| !uncapped);
        let cap = cap.map(|cap| {
            cap.minus(elsewhere.unwrap_or_default())
                .max(cap.scaled(0.1))
        });
        if worker.kernel_mut().set_cap(cap) {
            self.act(Action::Cap { worker: id, cap });
        }
    }

    /// The worker's cgroup already holds more than the limit that the supervisor asked for, so the
    /// kernel enforces a higher one. The lower limit is tried again after the next exact sample.
    pub(crate) fn on_cap_higher(&mut self, id: WorkerId, limit: Bytes) {
        let Some(worker) = self.state.workers.get_mut(&id) else {
            return;
        };
        let wanted = worker
            .kernel_mut()
            .on_cap_in_force(limit)
            .unwrap_or_default();
        self.warn_once("cap below what is held", || {
            format!(
                "{id} already holds more than {wanted}, the limit that its cap asks for: the \
                 kernel limits it to {limit} until it has shrunk"
            )
        });
    }

    /// Sets the threshold so that it is reached when the ceiling is reached.
    fn check_threshold(&mut self, now: Timestamp, id: WorkerId) {
        let has_thresholds = self
            .here
            .machine
            .as_ref()
            .is_some_and(|machine| machine.threshold);
        let jitter = self.spec.recycle.jitter;
        if !has_thresholds || !self.spec.memory.threshold {
            return;
        }
        let Some(worker) = self.state.workers.get_mut(&id) else {
            return;
        };
        let (Some(ceiling), Some(sample), true) = (
            worker.watched(&self.state.limits, jitter),
            worker.memory().last(),
            worker.memory().is_sure(),
        ) else {
            return;
        };
        let room = ceiling.minus(worker.memory().value());
        if worker.drain().is_some() || room == Bytes::ZERO {
            return;
        }
        let at = sample.cgroup.map(|charge| charge.plus(room));
        let slack = ceiling.scaled(0.02).max(Bytes::mib(1));
        if worker.kernel_mut().set_threshold(now, at, slack) {
            self.act(Action::SetThreshold { worker: id, room });
        }
    }

    /// Takes a sample at once. The sample decides whether the worker is over its ceiling.
    pub(crate) fn on_threshold_reached(&mut self, now: Timestamp, id: WorkerId) {
        if let Some(worker) = self.state.workers.get_mut(&id) {
            worker.kernel_mut().on_threshold_reached(now);
            worker.memory_mut().sample_now(now);
        }
    }

    pub(crate) fn on_held(&mut self, held: Bytes) {
        if self.state.usage.on_held(held) {
            self.plan.touch();
        }
    }

    /// Samples all workers at once. The samples decide which workers are replaced.
    pub(crate) fn on_memory_pressure(&mut self, now: Timestamp) {
        for worker in self.state.workers.values_mut() {
            worker.memory_mut().sample_now(now);
        }
        if self.state.usage.on_pressure(now) {
            let budget = self.state.limits.budget.bytes;
            self.emit(Event::Pressed {
                memory: self.total(),
                budget,
            });
        }
    }

    /// Warns about an action that failed, and switches off what depends on it.
    pub(crate) fn on_failed(&mut self, worker: Option<WorkerId>, effect: Effect, what: &str) {
        let (about, off) = match effect {
            Effect::Cap => ("cap", "; the cap is not enforced"),
            Effect::Budget => ("budget", "; the budget is enforced by recycling only"),
            Effect::Threshold => ("threshold", "; the ceiling is checked by samples only"),
            Effect::Signal => ("signal", ""),
            Effect::Sample => ("look", ""),
            Effect::Other => ("other", ""),
        };
        if let Some(worker) = worker.and_then(|id| self.state.workers.get_mut(&id)) {
            match effect {
                Effect::Cap => worker.kernel_mut().on_cap_failed(),
                Effect::Sample => worker.memory_mut().on_sample_failed(),
                Effect::Budget | Effect::Threshold | Effect::Signal | Effect::Other => {}
            }
        }
        let message = format!("failed to {what}{off}");
        if matches!(
            effect,
            Effect::Cap | Effect::Budget | Effect::Threshold | Effect::Sample
        ) {
            self.warn_once(about, || message);
        } else {
            self.emit(Event::Warning(message));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::supervisor::{
        input::{Ended, Exact, Input, Machine, Oom},
        spec::{Limit, MemorySpec, Spec},
    };
    use crate::units::Size;

    /// A service with one worker that was moved into its cgroup, with a cap of 200M.
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
            capped.happens(Input::Machine(Machine {
                caps: CapMechanism::CgroupV1,
                ..Machine::default()
            }));
            capped.happens(Input::Available(Bytes::mib(4000)));
            let run = crate::units::RunId(1);
            capped.happens(Input::Started { run, pid: 7 });
            capped
        }

        /// Hands in an input. Returns the caps that are written, in MiB.
        fn happens(&mut self, input: Input) -> Vec<u64> {
            self.millis += 1000;
            let now = Timestamp::from_nanos(self.millis * 1_000_000);
            self.decider.handle_input(now, input);
            let mut caps = Vec::new();
            while let Some(action) = self.decider.poll_action() {
                if let Action::Cap { cap, .. } = action {
                    caps.push(cap.unwrap_or_default().get() >> 20);
                }
            }
            while let Some(event) = self.decider.poll_event() {
                if let Event::Warning(text) = event {
                    self.warnings.push(text);
                }
            }
            caps
        }

        /// Hands in an exact sample of the worker. All figures are in MiB.
        fn sampled(&mut self, private: u64, anon: u64, charged: Option<u64>) -> Vec<u64> {
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
            self.happens(Input::Sampled { worker, sample })
        }
    }

    #[test]
    fn a_cap_is_lowered_only_by_anonymous_pages_that_are_charged_elsewhere() {
        let mut capped = Capped::new();
        // Huge pages, swap and unnamed shared memory are not covered by the group's limit, or are
        // charged to this group.
        assert!(capped.sampled(150, 50, Some(50)).is_empty());
        // A difference below a megabyte is noise, because two figures are read one after the other.
        assert!(capped.sampled(150, 50, Some(51)).is_empty());
        assert_eq!(capped.sampled(150, 50, Some(30)), [180]);
        assert_eq!(capped.sampled(150, 50, Some(50)), [200]);
        // A worker that started in its group has no pages charged elsewhere.
        assert!(capped.sampled(150, 150, None).is_empty());
        assert_eq!(capped.warnings, Vec::<String>::new());
    }

    #[test]
    fn caps_are_enforced_again_when_the_worker_whose_cap_failed_has_ended() {
        let mut capped = Capped::new();
        let is_enforced = |capped: &Capped| capped.decider.snapshot(Timestamp::default()).enforced;
        assert!(is_enforced(&capped));
        let worker = WorkerId::FIRST;
        capped.happens(Input::Failed {
            what: "write the cap".to_owned(),
            worker: Some(worker),
            effect: Effect::Cap,
        });
        assert!(!is_enforced(&capped));
        capped.happens(Input::WorkerEnded {
            worker,
            ended: Ended::Exit(1),
            oom: Oom::No,
            peak: None,
        });
        assert!(is_enforced(&capped));
    }

    #[test]
    fn a_cap_below_what_the_worker_holds_is_warned_about_once_and_tried_again() {
        let mut capped = Capped::new();
        assert_eq!(capped.sampled(190, 190, Some(150)), [160]);
        let (worker, limit) = (WorkerId::FIRST, Bytes::mib(165));
        for _ in 0..2 {
            assert!(
                capped
                    .happens(Input::CapHigher { worker, limit })
                    .is_empty()
            );
            assert_eq!(capped.sampled(190, 190, Some(150)), [160]);
        }
        let [warning] = &capped.warnings[..] else {
            panic!("{:?}", capped.warnings)
        };
        assert!(
            warning.contains("160M") && warning.contains("165M"),
            "{warning}"
        );
        assert!(!warning.contains("not enforced"), "{warning}");
    }
}
