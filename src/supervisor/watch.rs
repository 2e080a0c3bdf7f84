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
        self.mind_futile(now, id);
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

    /// Tells the kernel the cap, less what is charged to another group.
    pub(super) fn mind_cap(&mut self, id: WorkerId) {
        let by_group = self
            .machine
            .as_ref()
            .is_some_and(|machine| machine.caps != CapMechanism::Rlimit);
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let elsewhere = worker.memory.charged_elsewhere().filter(|_| by_group);
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
        if effect == Effect::Look
            && let Some(worker) = worker.and_then(|id| self.workers.get_mut(&id))
        {
            worker.memory.on_look_failed();
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
