//! The state of a pool for `status`, the control API and metrics.

use std::collections::BTreeSet;

use super::{Phase, Pool, worker::Worker};
use crate::{
    supervisor::{
        event::Limits,
        history::{Observation, Observed},
        input::{Agent, CapMechanism},
        snapshot::{MemoryView, PoolView, Snapshot, WorkerView},
    },
    units::{Bytes, Timestamp, WorkerId},
};

impl Pool {
    /// The limits in effect.
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The state of the whole pool.
    pub fn snapshot(&self, now: Timestamp) -> Snapshot {
        let has_cap = self.limits.cap.bytes.is_some();
        let forked = self.workers.iter().filter_map(|(id, worker)| {
            let pid = worker.pid()?;
            Some(self.view(now, (*id, pid), worker))
        });
        Snapshot {
            name: self.spec.name.clone(),
            mode: "pool".to_owned(),
            command_pid: None,
            ready: self.stop.is_none() && self.takes_tasks(),
            stopping: self.stop.is_some() || self.is_over(),
            caps: self.machine.caps,
            enforced: has_cap && self.machine.caps != CapMechanism::Rlimit,
            why_not: self.machine.why_not.clone(),
            measure: "private".to_owned(),
            limits: self.limits.clone(),
            workers: forked.collect(),
            recycles: self.record.recycles().clone(),
            unplanned: self.record.unplanned().clone(),
            ends: self.record.ends().iter().cloned().collect(),
            requests: Some(self.tasks.returned().saturating_add(self.tasks.failed())),
            pool: Some(self.tasks_view()),
            ..Snapshot::default()
        }
    }

    /// What the history keeps of this moment.
    pub fn observe(&self, now: Timestamp) -> Observation {
        let workers = self.workers.iter();
        let workers = workers.map(|(&id, worker)| Observed {
            worker: id,
            age: worker.age(now),
            tasks: Some(worker.ended()),
            memory: Some(self.memory_of(id, worker)),
            warm: worker.stage().is_serving(),
        });
        let workers: Vec<_> = workers.collect();
        let memory = workers.iter().filter_map(|worker| worker.memory);
        Observation {
            limits: self.limits.clone(),
            mode: "pool".to_owned(),
            server: Bytes::ZERO,
            memory: memory.fold(Bytes::ZERO, Bytes::plus),
            tasks: Some(self.tasks.returned().saturating_add(self.tasks.failed())),
            workers,
        }
    }

    fn takes_tasks(&self) -> bool {
        let mut stages = self.workers.values().map(Worker::stage);
        stages.any(|stage| stage.is_serving() || stage.is_retiring())
    }

    fn tasks_view(&self) -> PoolView {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let running = self.busy();
        let waiting = self.tasks.queued().saturating_add(self.under_way());
        PoolView {
            function: self.spec.function.clone(),
            done: self.tasks.returned(),
            failed: self.tasks.failed(),
            running: count(running),
            waiting: count(waiting.saturating_sub(running)),
            abandoned: self.tasks.abandoned(),
        }
    }

    fn view(&self, now: Timestamp, (id, pid): (WorkerId, i32), worker: &Worker) -> WorkerView {
        let memory = self.memory_of(id, worker);
        WorkerView {
            id,
            pid,
            slot: worker.slot().0,
            state: worker.stage().name().to_owned(),
            age: worker.age(now),
            tasks: Some(worker.ended()),
            tasks_per_s: worker.counted(now).rate(),
            bytes_per_task: None,
            agent: Agent::Absent("workers of a pool load the agent only for a report".to_owned()),
            traced: false,
            rescues: 0,
            processes: 1,
            status_text: None,
            killed_in: None,
            memory: MemoryView {
                private: memory,
                rss: memory,
                peak: worker.peak().max(memory),
                baseline: Some(worker.base()),
                ..MemoryView::default()
            },
        }
    }

    /// The workers that take tasks. An operator can have them replaced.
    pub fn serving(&self) -> BTreeSet<WorkerId> {
        let workers = self.workers.iter();
        workers
            .filter(|(_, worker)| worker.stage().is_serving())
            .map(|(id, _)| *id)
            .collect()
    }

    /// The pool is ending, and starts no more processes.
    pub(super) const fn is_over(&self) -> bool {
        matches!(
            self.phase,
            Phase::Leaving(..) | Phase::Clearing(super::Next::End(_)) | Phase::Over
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        supervisor::{
            cause::Cause,
            input::{Ended, Oom},
            pool::{
                fixture::{at, exited, handle, handle_at, returned, running, succeeded},
                input::{Action, Input, SlotId, WorkerEnd},
            },
        },
        units::{Bytes, Signal},
    };

    const SLOT: SlotId = SlotId(0);
    const CRASH: Signal = Signal(11);

    fn ended(worker: WorkerId, ended: Ended) -> Input {
        Input::WorkerEnded(WorkerEnd {
            ended,
            ..exited(worker)
        })
    }

    fn private(pool: &Pool) -> Vec<Bytes> {
        let views = pool.snapshot(at(0)).workers;
        views.iter().map(|view| view.memory.private).collect()
    }

    #[test]
    fn the_memory_of_a_slot_is_that_of_its_oldest_worker() {
        let (mut pool, worker) = running(1);
        let next = succeeded(&mut pool, worker);
        let base = Bytes::mib(10);
        handle(&mut pool, Input::Ready { worker: next, base });
        handle(&mut pool, Input::Sampled(SLOT, Bytes::mib(50)));
        assert_eq!(private(&pool), [Bytes::mib(50), Bytes::ZERO]);
        handle(&mut pool, returned(worker, 10));
        handle(&mut pool, ended(worker, Ended::Exit(0)));
        let end = pool.snapshot(at(0)).ends.pop().unwrap();
        assert_eq!((end.cause, end.memory), (Cause::Request, Bytes::mib(50)));
        // The last sample was that of the earlier worker.
        assert_eq!(private(&pool), [Bytes::ZERO]);
        handle(&mut pool, Input::Sampled(SLOT, Bytes::mib(12)));
        assert_eq!(private(&pool), [Bytes::mib(12)]);
    }

    #[test]
    fn a_worker_that_was_never_forked_is_not_shown_and_has_no_end() {
        let (mut pool, worker) = running(2);
        let died = ended(worker, Ended::Signal(CRASH));
        let actions = handle(&mut pool, died);
        let Some(&Action::Fork(_, next)) = actions.last() else {
            panic!("{actions:?}");
        };
        assert!(pool.snapshot(at(0)).workers.is_empty());
        handle(&mut pool, ended(next, Ended::Signal(Signal::KILL)));
        let ends = pool.snapshot(at(0)).ends;
        let causes: Vec<_> = ends.iter().map(|end| end.cause).collect();
        assert_eq!(causes, [Cause::Signal(CRASH)]);
    }

    #[test]
    fn a_worker_that_is_killed_with_the_one_at_its_cap_has_another_cause() {
        for is_first in [false, true] {
            let (mut pool, worker) = running(1);
            let next = succeeded(&mut pool, worker);
            // The kernel kills the whole slot while the first still runs its task. Their ends are
            // reported in any order.
            let (one, other) = if is_first {
                (worker, next)
            } else {
                (next, worker)
            };
            for id in [one, other] {
                let killed = WorkerEnd {
                    ended: Ended::Signal(Signal::KILL),
                    oom: Oom::Cap,
                    begun: u64::from(id == worker),
                    ..exited(id)
                };
                handle(&mut pool, Input::WorkerEnded(killed));
            }
            let ends = pool.snapshot(at(0)).ends;
            let causes: BTreeMap<_, _> = ends.iter().map(|end| (end.pid, end.cause)).collect();
            assert_eq!(causes, BTreeMap::from([(7, Cause::Cap), (8, Cause::Stop)]));
        }
    }

    #[test]
    fn a_worker_that_crashes_while_the_pool_stops_has_its_own_cause() {
        for (how, cause) in [
            (Ended::Signal(CRASH), Cause::Signal(CRASH)),
            (Ended::Signal(Signal::TERM), Cause::Stop),
            (Ended::Exit(0), Cause::Stop),
        ] {
            let (mut pool, worker) = running(1);
            handle(&mut pool, Input::Stop);
            handle(&mut pool, ended(worker, how));
            let recorded = pool.snapshot(at(0)).ends.pop().map(|end| end.cause);
            assert_eq!(recorded, Some(cause), "{how:?}");
        }
    }

    #[test]
    fn the_rate_of_a_worker_counts_its_tasks() {
        let (mut pool, worker) = running(1);
        assert_eq!(pool.snapshot(at(0)).workers[0].tasks_per_s, None);
        handle_at(&mut pool, at(500), returned(worker, 500_000));
        assert_eq!(pool.snapshot(at(500)).workers[0].tasks_per_s, Some(2.0));
        let idle = pool.snapshot(at(60_000)).workers[0].tasks_per_s;
        assert_eq!(idle, Some(0.0));
    }
}
