//! Memory reports: requests to workers, and their answers.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::Duration,
};

use super::PoolDriver;
use crate::{
    agent::Agent,
    control::Reply,
    host::clock,
    protocol::frame::{Order, OrderKind},
    supervisor::{
        action::{About, Answer},
        cause::Cause,
        input::AgentAnswer,
        pool::input::Input,
    },
    units::{Bytes, ReportId, WorkerId},
};

impl PoolDriver {
    pub(super) fn request_report(&mut self, about: About, room: Bytes, time_box: Duration) {
        // Files that cannot be written are missed by the worker, whose answer says so.
        if !self.has_agent_files {
            self.has_agent_files = self.files.install_agent().is_ok();
        }
        let question = Agent::request_for_report(&about, room, time_box);
        let order = Order {
            kind: OrderKind::Report,
            seq: about.report.0,
            body: question.as_bytes(),
        };
        order.write(self.to.entry(about.worker).or_default());
        self.reports.insert(about.report, about);
    }

    /// A worker has sent the report with this number.
    pub(super) fn on_report(&mut self, worker: WorkerId, number: u64, text: &[u8]) {
        let id = ReportId(number);
        let Some(about) = take_requested(&mut self.reports, id, worker) else {
            return;
        };
        let answer = self.agent.on_report(&about, text, clock::unix_seconds());
        if about.cause == Cause::Request {
            let document = self.agent.kept().get(id);
            self.control
                .answer_reports(worker, || match (&answer, document) {
                    (AgentAnswer::Failed(why), _) => {
                        Reply::Answer(Answer::Refused(format!("{worker}: {why}")))
                    }
                    (_, Some(document)) => Reply::Document(document.to_owned()),
                    (_, None) => Reply::Answer(Answer::Refused(format!("{worker} made no report"))),
                });
        }
        self.hand_in(Input::Reported { worker, answer });
    }

    /// Gives up the reports of a worker that will not come, and refuses those who wait for them.
    pub(super) fn forget_reports(&mut self, worker: WorkerId, why: &str) {
        self.reports.retain(|_, about| about.worker != worker);
        self.control.answer_reports(worker, || {
            Reply::Answer(Answer::Refused(format!("{worker}: {why}")))
        });
    }
}

/// Takes the request that a worker answers.
///
/// RACE: a task may have found the socket among its descriptors and have written the answer. Only
/// the worker of which a report was requested can answer, and once.
fn take_requested(
    requested: &mut BTreeMap<ReportId, About>,
    id: ReportId,
    worker: WorkerId,
) -> Option<About> {
    match requested.entry(id) {
        Entry::Occupied(entry) if entry.get().worker == worker => Some(entry.remove()),
        Entry::Occupied(_) | Entry::Vacant(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_worker_of_which_a_report_was_requested_can_answer_and_once() {
        let (worker, report) = (WorkerId::FIRST, ReportId(3));
        let about = About {
            report,
            worker,
            pid: 7,
            cause: Cause::Request,
            private: Bytes::mib(9),
            rss: Bytes::mib(9),
            baseline: None,
            processes: 1,
        };
        let mut requested = BTreeMap::from([(report, about)]);
        let mut is_taken = |id, by| take_requested(&mut requested, id, by).is_some();
        assert!(!is_taken(ReportId(4), worker));
        assert!(!is_taken(report, worker.next()));
        assert!(is_taken(report, worker));
        assert!(!is_taken(report, worker));
    }
}
