//! Answers operators' questions from a snapshot, for services and for pools alike.

use super::{Driver, event_log::EventLog};
use crate::{
    agent::kept::Kept,
    control::{Context, PendingRequest, Question, Reply, documents},
    host::clock,
    observe::metrics,
    supervisor::{
        action::Answer,
        input::{Ask, Input},
        snapshot::Snapshot,
    },
    units::RequestId,
};

/// The sources of the answers.
pub(super) struct Sources<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) context: &'a Context,
    pub(super) events: &'a EventLog,
    /// The kept reports; a pool has none.
    pub(super) kept: Option<&'a Kept>,
    pub(super) own: metrics::Own,
}

impl Sources<'_> {
    /// The answer to a question, or the change that it asks for.
    pub(super) fn answer(self, question: Question) -> Result<Reply, Ask> {
        Ok(match question {
            Question::Status => {
                let status = documents::Status::of(self.snapshot, self.context);
                Reply::Status(Box::new(status))
            }
            Question::Events { after, follow } => Reply::Events {
                past: self.events.after(after),
                live: follow.then(|| self.events.follow()),
            },
            Question::Reports => Reply::Document(self.kept.map_or("[]".to_owned(), Kept::all)),
            Question::Report(report) => match self.kept.and_then(|kept| kept.get(report)) {
                Some(document) => Reply::Document(document.to_owned()),
                None => Reply::Answer(Answer::Unknown(format!("{report} is not kept"))),
            },
            Question::History => Reply::Document(
                self.kept
                    .and_then(|kept| serde_json::to_string(kept.history()).ok())
                    .unwrap_or_else(|| "{}".to_owned()),
            ),
            Question::Metrics => Reply::Text(metrics::render(self.snapshot, &self.own)),
            // This answer shows that the loop runs.
            Question::Health => Reply::Is {
                ok: true,
                why: String::new(),
            },
            Question::Readiness => {
                let why = match (self.snapshot.stopping, &self.snapshot.pool) {
                    (true, _) => "the service is stopping",
                    (false, Some(_)) => "no worker takes tasks at the moment",
                    (false, None) => "the service does not answer yet",
                };
                Reply::Is {
                    ok: self.snapshot.ready,
                    why: why.to_owned(),
                }
            }
            Question::Do(ask) => return Err(ask),
        })
    }
}

impl Driver {
    pub(super) fn on_question(&mut self, PendingRequest { question, reply }: PendingRequest) {
        let now = clock::now();
        let snapshot = self.supervisor.snapshot(now);
        let sources = Sources {
            snapshot: &snapshot,
            context: &self.context,
            events: &self.events,
            kept: Some(self.agent.kept()),
            own: self.own_metrics(),
        };
        match sources.answer(question) {
            // The client may have disconnected.
            Ok(answer) => drop(reply.send(answer)),
            Err(ask) => {
                let request = RequestId(self.next_request);
                self.next_request += 1;
                self.waiting.insert(request, reply);
                let input = Input::Asked { request, ask };
                self.supervisor.handle_input(now, input);
            }
        }
    }
}
