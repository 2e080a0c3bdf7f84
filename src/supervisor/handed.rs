//! What one decider hands to the next when the binary is replaced under a running service.
//!
//! All that was seen and decided, as it is; not the wishes, which are read anew, and not the
//! machine, which is looked at anew. Moments stay what they are: the clock is the machine's.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    Supervisor,
    asking::Memo,
    end_loop::EndLoop,
    futile::Futile,
    last_words::LastWords,
    leftovers::Leftovers,
    report::{End, Limits},
    service::Service,
    spare::Spare,
    spec::Spec,
    suspension::Starts,
    worker::Worker,
};
use crate::units::{Bytes, Timestamp, WorkerId};

/// See the module.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Handed {
    seed: u64,
    limits: Limits,
    told_limits: Option<Limits>,
    service: Service,
    workers: BTreeMap<WorkerId, Worker>,
    next_worker: WorkerId,
    spare: Spare,
    server_memory: Bytes,
    boot_time: Option<Duration>,
    newborn: Bytes,
    #[serde(default)]
    futile: Futile,
    #[serde(default)]
    ends_loop: EndLoop,
    capped_at_boot: u32,
    #[serde(default)]
    starts: Starts,
    warned: BTreeSet<String>,
    memo: Memo,
    dead_done: Option<u64>,
    recycles: BTreeMap<String, u64>,
    unplanned: BTreeMap<String, u64>,
    ends: VecDeque<End>,
    last_words: LastWords,
    #[serde(default)]
    leftovers_ended: u64,
}

impl Supervisor {
    /// All that a successor needs to go on.
    pub fn hand_over(&self) -> Handed {
        Handed {
            seed: self.seed,
            limits: self.limits.clone(),
            told_limits: self.told_limits.clone(),
            service: self.service.clone(),
            workers: self.workers.clone(),
            next_worker: self.next_worker,
            spare: self.spare.clone(),
            server_memory: self.server_memory,
            boot_time: self.boot_time,
            newborn: self.newborn,
            futile: self.futile.clone(),
            ends_loop: self.ends_loop.clone(),
            capped_at_boot: self.capped_at_boot,
            starts: self.starts.clone(),
            warned: self.warned.clone(),
            memo: self.memo.clone(),
            dead_done: self.dead_done,
            recycles: self.recycles.clone(),
            unplanned: self.unplanned.clone(),
            ends: self.ends.clone(),
            last_words: self.last_words.clone(),
            leftovers_ended: self.leftovers.ended(),
        }
    }

    /// Goes on where another one stopped. As after [`Supervisor::new`] the first two events are
    /// `Machine` and `Available`; nothing is started for them.
    pub fn take_over(spec: Spec, now: Timestamp, handed: Handed) -> Self {
        let mut service = handed.service;
        service.restarts.set_policy(spec.restart);
        let mut last_words = handed.last_words;
        last_words.on_taken_over();
        let mut leftovers = Leftovers::default();
        leftovers.set_ended(handed.leftovers_ended);
        let mut workers = handed.workers;
        for worker in workers.values_mut() {
            // What the old one had asked the kernel for is gone with it: a look under way is never
            // answered, and a wire is not stretched any more.
            worker.memory.on_taken_over(now, spec.memory.measure);
            worker.wire = None;
        }
        Self {
            limits: handed.limits,
            told_limits: handed.told_limits,
            service,
            workers,
            next_worker: handed.next_worker,
            spare: handed.spare,
            server_memory: handed.server_memory,
            boot_time: handed.boot_time,
            newborn: handed.newborn,
            futile: handed.futile,
            ends_loop: handed.ends_loop,
            capped_at_boot: handed.capped_at_boot,
            starts: handed.starts,
            warned: handed.warned,
            memo: handed.memo,
            dead_done: handed.dead_done,
            replan: true,
            recycles: handed.recycles,
            unplanned: handed.unplanned,
            ends: handed.ends,
            last_words,
            leftovers,
            ..Self::new(spec, handed.seed, now)
        }
    }

    /// What is wished for.
    pub const fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Why the state cannot be handed over at the moment; `None` if it can.
    pub fn holds_up_upgrade(&self) -> Option<&'static str> {
        if self.service.is_stopping() {
            Some("the service is stopping")
        } else if self.service.pid().is_none() || !self.service.answers() {
            Some("the service does not answer yet")
        } else if self.operator.is_waited_for() {
            Some("somebody waits for a recycle or a reload that is under way")
        } else if self
            .workers
            .values()
            .any(|one| !one.asked.requests.is_empty())
        {
            Some("somebody waits for a report")
        } else {
            None
        }
    }
}
