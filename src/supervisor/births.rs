//! Workers coming into the books: seen, taken for what they are, ready.

use super::{
    Supervisor,
    action::{Action, Priority},
    asking::Asked,
    counting::Counted,
    memory::Memory,
    report::{Cause, Report},
    service::{ORPHAN_GRACE, Phase},
    spec::{Kind, ReadyWhen},
    tracing::Tracing,
    worker::{Life, Worker},
};
use crate::units::{RunId, Timestamp, WorkerId};

impl Supervisor {
    /// Takes a process into the books.
    pub(super) fn add_worker(&mut self, now: Timestamp, id: WorkerId, pid: i32) {
        let taken: Vec<_> = self.workers.values().map(|worker| worker.slot).collect();
        let slot = (0..).find(|slot| !taken.contains(slot)).unwrap_or(0);
        let worker = Worker {
            id,
            pid,
            slot,
            seen: now,
            life: Life::Starting,
            memory: Memory::new(self.spec.memory.measure, now),
            wanted_gone: None,
            told_due: None,
            expected: None,
            leaves_by: None,
            jitter: self.chance(id),
            asked: Asked::new(now),
            tracing: Tracing::default(),
            counted: Counted::default(),
            birth: None,
            warm: false,
            born_fat: false,
            over_since: None,
            proved: false,
            priority: Priority::Normal,
            cap: self.limits.cap.bytes,
            wire: None,
        };
        self.workers.insert(id, worker);
        self.tell(Report::WorkerSeen { worker: id, pid });
    }

    pub(super) fn on_worker_seen(&mut self, now: Timestamp, run: RunId, pid: i32) {
        if !self.service.is_current(run) {
            return;
        }
        let id = self.name_worker();
        self.add_worker(now, id, pid);
        let cap = self.limits.cap.bytes;
        self.act(Action::Adopt {
            run,
            worker: id,
            pid,
            cap,
        });
        if matches!(self.service.phase, Phase::Clearing { .. }) {
            let until = now.later(ORPHAN_GRACE);
            self.send_away(now, id, Cause::Stop, until);
        }
        self.spare.on_change(now);
        self.replan = true;
    }

    pub(super) fn on_no_worker(&mut self, now: Timestamp, worker: WorkerId) {
        if let Some(helper) = self.workers.remove(&worker) {
            self.refuse_reports(&helper, "it is no worker but a helper of its server");
            self.operator.on_gone(worker);
            self.spare.on_change(now);
            self.replan = true;
        }
    }

    pub(super) fn on_worker_ready(&mut self, now: Timestamp, id: WorkerId) {
        let normal = Priority::Normal;
        let Some(worker) = self
            .workers
            .get_mut(&id)
            .filter(|worker| worker.is_starting())
        else {
            return;
        };
        let after = worker.age(now);
        worker.life = Life::Ready { since: now };
        worker.memory.look_now(now);
        let was_low = std::mem::replace(&mut worker.priority, normal) != normal;
        if was_low {
            self.act(Action::Prioritize {
                worker: id,
                priority: normal,
            });
        }
        self.capped_at_boot = 0;
        self.ends_loop.on_ready();
        // The slower of the last two: the next one is likely to need no more.
        let known = self
            .boot_time
            .map_or(after, |known| known.mul_f64(0.7).max(after));
        self.boot_time = Some(known);
        self.tell(Report::WorkerReady { worker: id, after });
        self.note_start(now, id);
        self.spare.on_change(now);
        self.replan = true;
        let server = matches!(self.spec.kind, Kind::Server(_));
        if server && matches!(self.spec.ready.when, ReadyWhen::Auto) {
            self.on_answers(now, self.service.run);
        }
        if server {
            self.tell_late_comer(now, id);
        }
    }

    /// RACE: a stopping server tells its workers to go. One that it has just forked does not catch
    /// the signal yet, and would serve on until the grace is over.
    fn tell_late_comer(&mut self, now: Timestamp, id: WorkerId) {
        let stop = self.service.stop.as_ref();
        if stop.is_some_and(|stop| stop.kill_at.is_some() && stop.tell_at.is_none()) {
            // It may have its own grace; that of the stop ends all.
            let until = now.later(self.spec.stop.grace);
            self.send_away(now, id, Cause::Stop, until);
        }
    }

    pub(super) fn on_masters(&mut self, now: Timestamp, run: RunId, count: u32) {
        if self.service.is_current(run) {
            self.spare.on_masters(now, count);
            self.replan = true;
        }
    }
}
