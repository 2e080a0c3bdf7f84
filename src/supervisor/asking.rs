//! What workers are asked: who has the agent, garbage first, and why they are fat before they go.
//!
//! Every question has its time; a worker that does not answer is treated as one that has no agent.
//! At most one question is with a worker at a time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Supervisor,
    action::{Action, AgentAsk, Answer},
    due::Due,
    event::{Agent, Said},
    report::{Cause, Report},
    spec::AgentLoad,
    worker::Worker,
};
use crate::units::{Bytes, ReportId, RequestId, Timestamp, WorkerId};

/// An interpreter may take its time to start: until a worker is that old it is looked for its agent
/// again and again.
const FIND_UNTIL: Duration = Duration::from_secs(15);
/// A worker that serves is given at least this long before a missing agent is told.
const FIND_SERVING: Duration = Duration::from_secs(3);
const FIND_AGAIN: Duration = Duration::from_secs(1);
const FIND_FIRST: Duration = Duration::from_millis(200);
/// A worker that had none by then is looked at again as often: it may have executed another
/// program.
const FIND_LATER: Duration = Duration::from_secs(60);
/// `gc.collect()` takes 66 ms for a million objects, and a C call of the application may come
/// first.
const COLLECT_BOX: Duration = Duration::from_secs(2);
/// Opening a window takes a census: 60 ms for a million objects.
const WINDOW_BOX: Duration = Duration::from_secs(1);
/// An answer may come so much later than its time box: the signal is taken between two bytecodes.
pub(super) const LATE: Duration = Duration::from_secs(1);
/// With less time to its cap a worker is not asked: it goes at once.
pub(super) const TIME_LEFT_MIN: Duration = Duration::from_millis(300);
/// After so many collections in a row that did not help, one a minute is enough.
const FUTILE_MAX: u32 = 3;
const FUTILE_PAUSE: Duration = Duration::from_secs(60);
/// A worker that is over its ceiling again as soon as this after it was rescued is not rescued.
const RESCUE_LASTS: Duration = Duration::from_secs(1);
/// At this many rescues of one worker the report says what it is that is collected each time.
const RESCUES_TOLD: u32 = 2;
/// What a worker runs is noted at each further tenth of its cap, from here on.
const STACKS_FROM: f64 = 0.4;
const STACKS_EVERY: f64 = 0.1;

/// How far up the ladder a worker over its ceiling has come (DESIGN §6).
///
/// RACE: a worker is the fattest when all together are close to their budget, and says why; while
/// it does, it passes its own ceiling. Saying why is the upper rung, but it has not stood on the
/// lower one: it collects garbage then, and may stay.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Rung {
    /// Collecting garbage was not enough.
    pub(super) collected: bool,
    /// It has said why.
    pub(super) reported: bool,
}

/// What is to be tried next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Collect,
    Report,
}

impl Rung {
    /// The next step of those that may be tried; `None`: it is at the top.
    const fn next(self, may_collect: bool, may_report: bool) -> Option<Step> {
        match (self.collected, self.reported) {
            (false, _) if may_collect => Some(Step::Collect),
            (_, false) if may_report => Some(Step::Report),
            _ => None,
        }
    }
}

/// A question that is with a worker.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Asking {
    pub(super) what: What,
    /// It is not waited for longer.
    pub(super) until: Timestamp,
}

/// Which question.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum What {
    Collect,
    Open,
    Close,
    Report {
        report: ReportId,
        cause: Cause,
        /// The worker said nothing: it is looked at from outside.
        outside: bool,
    },
}

/// What one worker was asked and said.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Asked {
    pub(super) agent: Agent,
    find_at: Timestamp,
    pub(super) asking: Option<Asking>,
    pub(super) rung: Rung,
    pub(super) rescues: u32,
    rescued_at: Option<Timestamp>,
    pub(super) report: Option<ReportId>,
    /// Operators who wait for a report.
    #[serde(skip)]
    pub(super) requests: Vec<RequestId>,
    /// What it runs was noted when it held this.
    pub(super) noted: Bytes,
}

impl Asked {
    pub(super) fn new(seen: Timestamp) -> Self {
        Self {
            agent: Agent::Unknown,
            find_at: seen.later(FIND_FIRST),
            asking: None,
            rung: Rung::default(),
            rescues: 0,
            rescued_at: None,
            report: None,
            requests: Vec::new(),
            noted: Bytes::ZERO,
        }
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.agent == Agent::Loaded
    }

    /// When to look for the agent, if it is `wanted`, or to give up on an answer.
    fn deadline(&self, wanted: bool) -> Option<Timestamp> {
        let asking = self.asking.map(|asking| asking.until);
        let find = wanted.then_some(self.find_at);
        asking.into_iter().chain(find).min()
    }

    /// At how much memory the next look at what it runs is due.
    pub(super) fn next_stack(&self, cap: Bytes) -> Bytes {
        let next = self.noted.plus(cap.scaled(STACKS_EVERY));
        next.max(cap.scaled(STACKS_FROM))
    }
}

/// What the service as a whole remembers of its workers' answers.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Memo {
    futile: u32,
    collect_after: Timestamp,
    pub(super) report_after: Timestamp,
    pub(super) next_report: ReportId,
    pub(super) rescues: u64,
}

impl Supervisor {
    /// Reports are numbered from here on: those before are kept from an earlier life.
    pub fn number_reports_from(&mut self, next: ReportId) {
        self.memo.next_report = next;
    }

    /// Finds agents, and gives up on questions that are not answered.
    pub(super) fn mind_asking(&mut self, now: Timestamp) {
        let wanted = self.spec.wants_agent();
        let mut silent = Vec::new();
        for (&id, worker) in &mut self.workers {
            let asked = &mut worker.asked;
            if wanted && asked.find_at <= now {
                asked.find_at = now.later(FIND_LATER);
                if !asked.is_loaded() {
                    self.actions.push_back(Action::FindAgent { worker: id });
                }
            }
            if asked.asking.is_some_and(|asking| asking.until <= now) {
                silent.push(id);
            }
        }
        for id in silent {
            self.on_silence(now, id, "it did not answer in its time");
        }
    }

    pub(super) fn asking_deadline(&self) -> Option<Timestamp> {
        let wanted = self.spec.wants_agent();
        let asked = self.workers.values();
        asked
            .filter_map(|worker| worker.asked.deadline(wanted))
            .min()
    }

    pub(super) fn on_agent_found(
        &mut self,
        now: Timestamp,
        id: WorkerId,
        (found, expected): (Agent, bool),
    ) {
        let must = self.spec.agent.load == AgentLoad::On;
        let guards = self.habits().is_some();
        let wanted = must || expected || guards || self.spec.recycle.max_tasks.is_some();
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if worker.asked.is_loaded() {
            return;
        }
        let grown_up = worker.age(now) >= FIND_UNTIL;
        // A worker that serves has loaded its application: its interpreter started long ago.
        let late = grown_up || (worker.birth.is_some() && worker.age(now) >= FIND_SERVING);
        if found != Agent::Loaded {
            let again = if grown_up { FIND_LATER } else { FIND_AGAIN };
            worker.asked.find_at = now.later(again);
        }
        worker.asked.agent.clone_from(&found);
        if let Agent::Absent(why) = found
            && wanted
            && late
        {
            let off: Vec<_> = self.spec.needs_agent().collect();
            self.warn_once("agent", || {
                let off = off.join(", ");
                format!("the agent is not in {id}: {why}; off without it: {off}")
            });
        }
    }

    /// Whether all that may help a worker over its limit, or explain it, has been tried. Asks for
    /// the next thing if not.
    pub(super) fn has_climbed(&mut self, now: Timestamp, due: &Due) -> bool {
        if !due.is_urgent() || self.spec.dry_run {
            return true;
        }
        let left = self.time_left(due.worker);
        let Some(worker) = self.workers.get(&due.worker) else {
            return true;
        };
        if worker.asked.asking.is_some() {
            return false;
        }
        let hurry = left.is_some_and(|left| left < TIME_LEFT_MIN);
        if !worker.asked.is_loaded() || hurry {
            return true;
        }
        if let Some(why) = self.shares_too_much(worker) {
            let id = due.worker;
            let asks = self.asks_automatically();
            if self.spec.memory.gc_first || asks {
                self.warn_once("shares too much", || {
                    format!("{id} is replaced without collecting garbage or reporting: {why}")
                });
            }
            return true;
        }
        let may_collect = due.cause == Cause::Ceiling && self.may_collect(now);
        match worker.asked.rung.next(may_collect, self.may_report(now)) {
            Some(Step::Collect) => self.ask(now, due.worker, What::Collect, AgentAsk::Collect),
            Some(Step::Report) => self.ask_report(now, due.worker, due.cause, left),
            None => return true,
        }
        false
    }

    /// Collecting garbage has not failed yet, or helped the last time, as far as workers can be
    /// asked.
    pub(super) fn may_be_rescued(&self) -> bool {
        let loaded = self.workers.values().any(|worker| worker.asked.is_loaded());
        self.spec.memory.gc_first && loaded && self.memo.futile == 0
    }

    fn may_collect(&self, now: Timestamp) -> bool {
        let hopeless = self.memo.futile >= FUTILE_MAX && now < self.memo.collect_after;
        self.spec.memory.gc_first && !hopeless
    }

    pub(super) fn may_report(&self, now: Timestamp) -> bool {
        self.asks_automatically() && now >= self.memo.report_after
    }

    /// Until this worker is at its cap, at the pace it has.
    fn time_left(&self, id: WorkerId) -> Option<Duration> {
        let cap = self.limits.cap.bytes?;
        self.workers.get(&id)?.memory.time_to(cap)
    }

    /// How much more a worker may take before its cap. The kernel compares what the group is
    /// charged with, which the measure may not be.
    pub(super) fn room_of(&self, worker: &Worker) -> Bytes {
        let cap = self.limits.cap.bytes.unwrap_or(self.limits.available);
        let room = cap.minus(worker.memory.value());
        let by_group = worker.cap.zip(worker.memory.held());
        by_group.map_or(room, |(cap, held)| room.min(cap.minus(held)))
    }

    pub(super) fn ask(&mut self, now: Timestamp, id: WorkerId, what: What, ask: AgentAsk) {
        let within = match &ask {
            AgentAsk::Collect => COLLECT_BOX,
            AgentAsk::Open { .. } | AgentAsk::Close => WINDOW_BOX,
            AgentAsk::Report { time_box, .. } => *time_box,
        };
        if let Some(worker) = self.workers.get_mut(&id) {
            let until = now.later(within.saturating_add(LATE));
            worker.asked.asking = Some(Asking { what, until });
            self.act(Action::AskAgent { worker: id, ask });
        }
    }

    pub(super) fn on_said(&mut self, now: Timestamp, id: WorkerId, said: Said) {
        if let Said::Reported {
            report,
            cause,
            summary,
        } = said
        {
            // Told of the dead as well: what is kept of them is kept after their end.
            self.tell(Report::Reported {
                report,
                worker: id,
                cause,
                summary,
            });
            self.on_reported(now, id, report);
            return;
        }
        let Some(asking) = self.workers.get_mut(&id).and_then(|w| w.asked.asking) else {
            return;
        };
        match (said, asking.what) {
            (Said::Collected { before, after }, What::Collect) => {
                self.on_collected(now, id, before.minus(after))
            }
            (Said::Opened, What::Open) => self.on_window(now, id, true),
            (Said::Closed, What::Close) => self.on_window(now, id, false),
            (Said::Failed(why), _) => self.on_silence(now, id, &why),
            // RACE: it answered what it was asked before, after we had given up on that.
            (Said::Collected { .. } | Said::Opened | Said::Closed | Said::Reported { .. }, _) => {}
        }
    }

    /// Over its ceiling it has collected garbage: if what is left is below, it stays.
    fn on_collected(&mut self, now: Timestamp, id: WorkerId, freed: Bytes) {
        let (full, jitter) = (self.limits.ceiling.bytes, self.spec.recycle.jitter);
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.asked.asking = None;
        let memory = worker.memory.value().minus(freed);
        let ceiling = worker.ceiling(full, jitter);
        let below = ceiling.is_none_or(|ceiling| memory < ceiling.scaled(0.98));
        let below = below && freed > Bytes::ZERO;
        let lasted = worker.asked.rescued_at;
        let lasted = lasted.is_none_or(|at| now.since(at) >= RESCUE_LASTS);
        self.replan = true;
        if !below || !lasted {
            worker.asked.rung.collected = true;
            self.memo.futile = self.memo.futile.saturating_add(1);
            self.memo.collect_after = now.later(FUTILE_PAUSE);
            return;
        }
        worker.asked.rung = Rung::default();
        worker.asked.rescued_at = Some(now);
        worker.asked.rescues = worker.asked.rescues.saturating_add(1);
        worker.told_due = None;
        worker.memory.on_freed(now);
        let times = worker.asked.rescues;
        self.memo.futile = 0;
        self.memo.rescues = self.memo.rescues.saturating_add(1);
        self.tell(Report::Rescued {
            worker: id,
            freed,
            memory,
            times,
        });
        if times >= RESCUES_TOLD && self.may_report(now) {
            self.ask_report(now, id, Cause::Ceiling, None);
        }
        self.mind_requests(now, id);
    }

    /// It could not be asked, or did not answer in time. The ladder goes on without it.
    fn on_silence(&mut self, now: Timestamp, id: WorkerId, why: &str) {
        self.replan = true;
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let Some(asking) = worker.asked.asking.take() else {
            return;
        };
        match asking.what {
            What::Collect => {
                worker.asked.rung.collected = true;
                self.memo.futile = self.memo.futile.saturating_add(1);
                self.memo.collect_after = now.later(FUTILE_PAUSE);
            }
            What::Open | What::Close => worker.tracing.on_silence(now, asking.what == What::Open),
            What::Report {
                report,
                cause,
                outside: false,
            } => {
                self.look_from_outside(now, id, (report, cause), why.to_owned());
                return;
            }
            What::Report { cause, .. } => {
                if cause != Cause::Request {
                    worker.asked.rung.reported = true;
                }
                let requests = std::mem::take(&mut worker.asked.requests);
                self.answer_reports(requests, &Answer::Refused(why.to_owned()));
            }
        }
        self.mind_requests(now, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_said_why_for_the_budget_collects_for_its_ceiling() {
        let mut rung = Rung::default();
        assert_eq!(rung.next(false, true), Some(Step::Report));
        rung.reported = true;
        assert_eq!(rung.next(false, true), None);
        assert_eq!(rung.next(true, true), Some(Step::Collect));
        rung.collected = true;
        assert_eq!(rung.next(true, true), None);
    }

    #[test]
    fn garbage_comes_first() {
        let mut rung = Rung::default();
        assert_eq!(rung.next(true, true), Some(Step::Collect));
        rung.collected = true;
        assert_eq!(rung.next(true, true), Some(Step::Report));
    }
}
