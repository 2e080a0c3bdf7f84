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
        let whole = matches!(self.spec.kind, Kind::Single);
        let slot = (0..).find(|slot| !taken.contains(slot)).unwrap_or(0);
        let worker = Worker {
            id,
            pid,
            slot,
            seen: now,
            life: Life::Starting,
            memory: Memory::new(self.spec.memory.measure, whole, now),
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
            cap_failed: false,
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

    /// COMMAND is a script or a launcher that we do not know, and it has started a known server.
    pub(super) fn on_server_found(&mut self, pid: i32, server: &str) {
        self.warn_once("server found", || {
            format!(
                "COMMAND runs {server} (pid {pid}) and is treated as one worker with all its \
                 processes: they are recycled together, and nothing serves meanwhile. hint: give \
                 `--server {server}`, so that each worker of {server} is recycled by itself"
            )
        });
    }

    pub(super) fn on_masters(&mut self, now: Timestamp, run: RunId, count: u32) {
        if self.service.is_current(run) {
            self.spare.on_masters(now, count);
            self.replan = true;
        }
    }

    /// A number from 0 to 1 for each worker, from the seed: no two runs of one seed differ.
    fn chance(&self, worker: WorkerId) -> f64 {
        // splitmix64, by Sebastiano Vigna, public domain.
        let mut bits = worker.to_string().bytes().fold(self.seed, |bits, byte| {
            bits.rotate_left(8)
                .wrapping_add(u64::from(byte))
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        });
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let upper = u32::try_from((bits ^ (bits >> 31)) >> 32).unwrap_or(0);
        f64::from(upper) / f64::from(u32::MAX)
    }
}
