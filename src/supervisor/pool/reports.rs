//! Memory reports of workers: between two tasks, when no task waits for the worker.

use std::time::Duration;

use super::{LEAVE, Pool};
use crate::{
    supervisor::{
        action::About,
        cause::Cause,
        event::Event,
        input::AgentAnswer,
        pool::{input::Action, worker::Worker},
    },
    units::{Bytes, ReportId, Timestamp, WorkerId},
};

/// The least time between two reports that no operator has requested. A report takes up to two
/// seconds, in which its slot runs no task.
const PAUSE: Duration = Duration::from_secs(300);
/// A report looks at all objects, and so copies the pages that the worker shares with the template.
/// It is made only if these take at most this part of the memory that the worker may still use.
const PART_OF_ROOM: f64 = 0.5;

/// The reports of a pool.
#[derive(Debug, Default)]
pub(super) struct Reports {
    newest: ReportId,
    /// No report is made before, unless an operator requests it.
    pause_until: Timestamp,
}

impl Pool {
    /// The ids of new reports begin here.
    pub const fn number_reports_from(&mut self, first: ReportId) {
        self.reports.newest = ReportId(first.0.saturating_sub(1));
    }

    /// A worker over its ceiling, which is about to exit, makes a report after its last task. Its
    /// successor waits for that: both share the cap of their slot.
    pub(super) fn report_before_exit(&mut self, now: Timestamp, id: WorkerId) {
        let may = self.spec.reports && now >= self.reports.pause_until && self.has_room(id);
        if may && self.request_report(now, id, Cause::Ceiling) {
            self.reports.pause_until = now.later(PAUSE);
        }
    }

    /// An operator wants a report of this worker. The worker gets no tasks until it has answered,
    /// so that the report is not part of the time of a task.
    pub(super) fn on_report(&mut self, now: Timestamp, id: WorkerId) {
        let is_serving = |worker: &Worker| worker.stage().is_serving();
        if self.workers.get(&id).is_some_and(is_serving) {
            self.request_report(now, id, Cause::Request);
        }
    }

    /// What the worker shares with the template, and a report copies, is small compared with what
    /// it may still use.
    fn has_room(&self, id: WorkerId) -> bool {
        let worker = self.workers.get(&id);
        worker.is_some_and(|it| it.base() <= self.room_of(id, it).scaled(PART_OF_ROOM))
    }

    /// The memory that a worker may still use.
    fn room_of(&self, id: WorkerId, worker: &Worker) -> Bytes {
        let limits = [self.limits.cap.bytes, self.limits.budget.bytes];
        let limit = limits.into_iter().flatten().min();
        let used = self.memory_of(id, worker);
        limit.map_or(Bytes(u64::MAX), |limit| limit.minus(used))
    }

    /// Returns false if the worker is asked already.
    fn request_report(&mut self, now: Timestamp, id: WorkerId, cause: Cause) -> bool {
        let Some(worker) = self.workers.get(&id) else {
            return false;
        };
        let Some(pid) = worker.pid().filter(|_| !worker.is_report_awaited()) else {
            return false;
        };
        let report = self.reports.newest.next();
        let private = self.memory_of(id, worker);
        let request = Action::Report {
            about: About {
                report,
                worker: id,
                pid,
                cause,
                private,
                rss: private.plus(worker.base()),
                baseline: None,
                processes: 1,
            },
            room: self.room_of(id, worker),
            time_box: self.spec.time_box,
        };
        self.reports.newest = report;
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.request_report(now);
        }
        self.act(request);
        true
    }

    /// A worker that does not answer takes tasks again, or is killed if it should exit.
    pub(super) fn end_late_reports(&mut self, now: Timestamp) {
        let is_late = |worker: &Worker| {
            let since = worker.reports_since();
            since.is_some_and(|since| now.since(since) >= LEAVE)
        };
        for (id, worker) in &mut self.workers {
            if is_late(worker) {
                worker.end_report();
                self.out.act(Action::ForgetReport(*id));
                self.tasks.plan_dispatch();
            }
        }
    }

    pub(super) fn on_reported(&mut self, id: WorkerId, answer: AgentAnswer) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.end_report();
            self.plan_dispatch();
        }
        let (report, cause, summary) = match answer {
            AgentAnswer::Reported {
                report,
                cause,
                summary,
            } => (report, cause, summary),
            AgentAnswer::Failed(why) => {
                return self.emit(Event::Warning(format!("{id} made no memory report: {why}")));
            }
            AgentAnswer::Collected { .. }
            | AgentAnswer::Busy
            | AgentAnswer::Base { .. }
            | AgentAnswer::Opened
            | AgentAnswer::Closed => return,
        };
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.keep_report(report);
        }
        self.emit(Event::Reported {
            report,
            worker: id,
            cause,
            summary,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::pool::{
        fixture::{at, exited, handle, handle_at, returned, running, running_below},
        input::{Input, SlotId, WorkerEnd},
    };

    const SLOT: SlotId = SlotId(0);

    /// The cause and the number of the report that one of these actions requests.
    fn requested(actions: &[Action]) -> Option<(Cause, ReportId)> {
        actions.iter().find_map(|action| {
            let Action::Report { about, .. } = action else {
                return None;
            };
            Some((about.cause, about.report))
        })
    }

    fn reported(worker: WorkerId, report: ReportId) -> Input {
        let answer = AgentAnswer::Reported {
            report,
            cause: Cause::Ceiling,
            summary: "python".to_owned(),
        };
        Input::Reported { worker, answer }
    }

    fn sends(actions: &[Action]) -> bool {
        actions
            .iter()
            .any(|action| matches!(action, Action::Send(..)))
    }

    #[test]
    fn a_worker_over_its_ceiling_reports_after_its_tasks_and_before_it_exits() {
        let (mut pool, worker) = running_below(1, 400);
        pool.number_reports_from(ReportId(7));
        let actions = handle(&mut pool, Input::Sampled(SLOT, Bytes::mib(150)));
        assert_eq!(requested(&actions), Some((Cause::Ceiling, ReportId(7))));
        let place = |wanted: fn(&Action) -> bool| actions.iter().position(wanted);
        let report = place(|action| matches!(action, Action::Report { .. }));
        assert!(report < place(|action| matches!(action, Action::Quit(_))));
        handle(&mut pool, returned(worker, 10));
        handle(&mut pool, reported(worker, ReportId(7)));
        let end = WorkerEnd {
            begun: 1,
            finished: 1,
            ..exited(worker)
        };
        handle(&mut pool, Input::WorkerEnded(end));
        let end = pool.snapshot(at(0)).ends.pop().unwrap();
        assert_eq!((end.cause, end.report), (Cause::Ceiling, Some(ReportId(7))));
    }

    #[test]
    fn a_worker_that_has_no_room_for_a_report_is_not_asked_for_one() {
        // 10M are shared with the template, and 15M are left below the cap.
        let (mut pool, _) = running_below(1, 165);
        let actions = handle(&mut pool, Input::Sampled(SLOT, Bytes::mib(150)));
        assert_eq!(requested(&actions), None);
        assert!(actions.iter().any(|it| matches!(it, Action::Quit(_))));
    }

    #[test]
    fn reports_that_no_operator_has_requested_have_a_pause_between_them() {
        let (mut pool, worker) = running_below(3, 400);
        let over = || Input::Sampled(SLOT, Bytes::mib(150));
        assert!(requested(&handle(&mut pool, over())).is_some());
        handle(&mut pool, reported(worker, ReportId(1)));
        for (millis, is_due) in [(299_999, false), (300_000, true)] {
            pool.report_before_exit(at(millis), worker);
            let actions = handle_at(&mut pool, at(millis), Input::Deadline);
            assert_eq!(requested(&actions).is_some(), is_due, "{millis}");
        }
    }

    #[test]
    fn a_worker_takes_no_tasks_while_it_makes_the_report_of_an_operator() {
        let (mut pool, worker) = running(3);
        let actions = handle(&mut pool, Input::Report(worker));
        assert_eq!(requested(&actions), Some((Cause::Request, ReportId(1))));
        assert!(!sends(&handle(&mut pool, returned(worker, 10))));
        assert!(sends(&handle(&mut pool, reported(worker, ReportId(1)))));
    }

    #[test]
    fn a_worker_that_does_not_answer_takes_tasks_again() {
        let (mut pool, worker) = running(3);
        handle(&mut pool, Input::Report(worker));
        assert!(!sends(&handle_at(&mut pool, at(50), returned(worker, 10))));
        let until = at(50).later(LEAVE);
        assert_eq!(pool.poll_deadline(), Some(until));
        let actions = handle_at(&mut pool, until, Input::Deadline);
        assert!(sends(&actions));
        assert!(actions.contains(&Action::ForgetReport(worker)));
    }

    #[test]
    fn two_operators_share_one_report_and_a_failed_one_is_a_warning() {
        let (mut pool, worker) = running(3);
        assert!(requested(&handle(&mut pool, Input::Report(worker))).is_some());
        assert_eq!(requested(&handle(&mut pool, Input::Report(worker))), None);
        while pool.poll_event().is_some() {}
        let answer = AgentAnswer::Failed("no module".to_owned());
        handle(&mut pool, Input::Reported { worker, answer });
        let event = pool.poll_event();
        let is_why = |text: &str| text == "w1 made no memory report: no module";
        assert!(
            matches!(&event, Some(Event::Warning(text)) if is_why(text)),
            "{event:?}"
        );
    }
}
