//! The template, the nests, and the pool's own end.

use super::{
    Next, Phase, Pool, STARTS_MAX,
    event::{Action, Fate, Over, SlotId},
    worker::{Nest, Stage},
};
use crate::{
    supervisor::{
        event::Oom,
        limits::{Circumstances, derive},
        report::Effective,
        spec::Limit,
    },
    units::{Bytes, Timestamp, WorkerId},
};

/// The part of the budget that one worker may have: the rest is the template's and the nests'.
const ALONE: f64 = 0.95;
/// Once a template was ready, this many may end in a row before the pool gives up.
const KILLS_MAX: u32 = 50;

impl Pool {
    pub(super) fn on_available(&mut self, available: Bytes) {
        let here = Circumstances {
            available,
            workers: Some(self.spec.workers),
            job: false,
        };
        self.limits = derive(&self.spec.memory, here);
        if (self.spec.memory.ceiling, self.spec.memory.cap) == (Limit::Auto, Limit::Auto) {
            // Nobody has said what a task may need: one that runs alone may have nearly all.
            let most = self.limits.budget.bytes.map(|it| it.scaled(ALONE));
            self.limits.cap = Effective {
                bytes: most,
                from: "nearly the budget".to_owned(),
            };
        }
        self.actions
            .push_back(Action::Budget(self.limits.budget.bytes));
        if self.phase == Phase::Idle {
            self.phase = Phase::Starting;
            self.actions.push_back(Action::StartTemplate);
        }
    }

    pub(super) fn on_template_ready(&mut self) {
        if self.phase != Phase::Starting {
            return;
        }
        self.phase = Phase::Running;
        self.has_imported = true;
        self.dispatch = true;
    }

    pub(super) fn on_template_unfit(&mut self) {
        if self.phase == Phase::Starting {
            self.phase = Phase::Clearing(Next::Restart);
            self.actions.push_back(Action::EndTemplate);
        }
    }

    pub(super) fn on_template_failed(&mut self) {
        if matches!(self.phase, Phase::Clearing(_) | Phase::Over) {
            return;
        }
        self.template_failures = self.template_failures.saturating_add(1);
        // What cannot be imported the first time cannot be imported the second time. What has been
        // imported once can be imported again: then the template was killed while it started.
        let most = match (self.phase, self.has_imported) {
            (Phase::Starting, false) => 0,
            (_, false) => STARTS_MAX,
            (_, true) => KILLS_MAX,
        };
        let next = if self.template_failures > most {
            Next::End(Over::GaveUp)
        } else {
            self.actions.push_back(Action::Warn(
                "the template has ended, and is started anew with all workers".to_owned(),
            ));
            Next::Restart
        };
        self.phase = Phase::Clearing(next);
        self.actions.push_back(Action::EndTemplate);
    }

    pub(super) fn on_template_gone(&mut self, now: Timestamp) {
        if matches!(self.phase, Phase::Starting | Phase::Running) {
            // Nothing is left, and nobody said how it ended: its keeper was killed.
            self.on_template_failed();
        }
        let slots: Vec<_> = self.slots.keys().copied().collect();
        for slot in slots {
            self.on_nest_gone(now, slot, Oom::No);
        }
        match self.phase {
            Phase::Clearing(Next::Restart) if self.stop.is_none() => {
                self.phase = Phase::Starting;
                self.actions.push_back(Action::StartTemplate);
            }
            Phase::Clearing(Next::Restart) => self.end(self.stop.unwrap_or(Over::Stopped)),
            Phase::Clearing(Next::End(over)) => self.end(over),
            Phase::Idle | Phase::Starting | Phase::Running | Phase::Over => {}
        }
    }

    pub(super) fn on_nest_up(&mut self, now: Timestamp, slot: SlotId) {
        if let Some(slot) = self.slots.get_mut(&slot)
            && slot.nest == Nest::Asked
        {
            slot.nest = Nest::Up;
            slot.suspended = false;
            slot.memory = Bytes::ZERO;
            slot.look_at = now;
            self.dispatch = true;
        }
    }

    pub(super) fn on_ready(&mut self, now: Timestamp, id: WorkerId, base: Bytes) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if worker.stage == Stage::Boots {
            worker.stage = Stage::Serves;
            worker.base = base;
            worker.front_since = now;
            self.deaths = 0;
            self.starts_failed = 0;
            self.template_failures = 0;
            self.dispatch = true;
        }
    }

    /// Takes nothing new; what is under way is finished.
    pub(super) fn stop(&mut self, over: Over) {
        if self.stop.is_none() {
            self.stop = Some(over);
            self.queue.clear();
            self.alone.clear();
            if matches!(self.phase, Phase::Idle) {
                self.end(over);
            }
            self.dispatch = true;
        }
    }

    /// Takes nothing new, and ends what is under way.
    pub(super) fn stop_at_once(&mut self) {
        self.stop(Over::Stopped);
        let over = self.stop.unwrap_or(Over::Stopped);
        match self.phase {
            Phase::Idle | Phase::Over => {}
            Phase::Clearing(_) => self.phase = Phase::Clearing(Next::End(over)),
            Phase::Starting | Phase::Running => {
                self.phase = Phase::Clearing(Next::End(over));
                self.actions.push_back(Action::EndTemplate);
            }
        }
    }

    pub(super) fn end(&mut self, over: Over) {
        if over == Over::GaveUp {
            for ticket in std::mem::take(&mut self.queue)
                .into_iter()
                .chain(std::mem::take(&mut self.alone))
            {
                self.actions.push_back(Action::Fail {
                    seq: ticket.seq,
                    worker: None,
                    cause: Fate::StartFailed,
                    attempts: ticket.attempts(),
                    peak: None,
                });
            }
        }
        self.phase = Phase::Over;
        self.actions.push_back(Action::Over(over));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::{
        pool::{event::Event, spec::PoolSpec},
        spec::MemorySpec,
    };

    /// A pool whose template is being started.
    fn starting() -> Pool {
        let mut pool = Pool::new(PoolSpec {
            workers: 2,
            max_tasks: None,
            max_age: None,
            memory: MemorySpec::plain(),
            task_timeout: None,
            retries: 0,
            oom_retries: 1,
            batch: None,
            stop_on_error: false,
        });
        happens(&mut pool, Event::Available(Bytes::mib(1000)));
        pool
    }

    /// Hands in an event. The result: what the pool does about it.
    fn happens(pool: &mut Pool, event: Event) -> Vec<Action> {
        pool.handle_event(Timestamp::default(), event);
        std::iter::from_fn(|| pool.poll_action()).collect()
    }

    /// The template ends. The result: whether it is started anew.
    fn is_started_anew(pool: &mut Pool) -> bool {
        happens(pool, Event::TemplateFailed);
        let actions = happens(pool, Event::TemplateGone);
        let anew = actions.contains(&Action::StartTemplate);
        assert_ne!(
            anew,
            actions.contains(&Action::Over(Over::GaveUp)),
            "{actions:?}"
        );
        anew
    }

    #[test]
    fn a_template_that_ends_while_it_starts_is_started_anew_once_one_was_ready() {
        assert!(!is_started_anew(&mut starting()));
        let mut pool = starting();
        happens(&mut pool, Event::TemplateReady);
        for _ in 0..KILLS_MAX {
            assert!(is_started_anew(&mut pool));
        }
        assert!(!is_started_anew(&mut pool), "not for ever");
    }
}
