//! What operators ask, answered from the picture or handed in as a wish.

use super::Driver;
use crate::{
    control::{Asked, Question, Reply, wire},
    host::clock,
    observe::metrics,
    supervisor::{action::Answer, event::Event},
    units::RequestId,
};

impl Driver {
    pub(super) fn on_asked(&mut self, Asked { question, reply }: Asked) {
        let now = clock::now();
        let answer = match question {
            Question::Status => {
                let snapshot = self.supervisor.snapshot(now);
                Reply::Status(Box::new(wire::Status::of(&snapshot, &self.context)))
            }
            Question::Events { after, follow } => Reply::Events {
                past: self
                    .past
                    .iter()
                    .filter(|told| Some(told.id) > after)
                    .cloned()
                    .collect(),
                live: follow.then(|| self.live.subscribe()),
            },
            Question::Reports => Reply::Document(self.agent.kept().all()),
            Question::Report(report) => match self.agent.kept().get(report) {
                Some(document) => Reply::Document(document.to_owned()),
                None => Reply::Answer(Answer::Unknown(format!("{report} is not kept"))),
            },
            Question::Metrics => {
                Reply::Text(metrics::render(&self.supervisor.snapshot(now), &self.own()))
            }
            // The loop turns, or this would not be answered.
            Question::Health => Reply::Is {
                ok: true,
                why: String::new(),
            },
            Question::Readiness => {
                let snapshot = self.supervisor.snapshot(now);
                let why = if snapshot.stopping {
                    "the service is stopping"
                } else {
                    "the service does not answer yet"
                };
                Reply::Is {
                    ok: snapshot.ready,
                    why: why.to_owned(),
                }
            }
            Question::Do(ask) => {
                let request = RequestId(self.next_request);
                self.next_request += 1;
                self.waiting.insert(request, reply);
                self.supervisor
                    .handle_event(now, Event::Asked { request, ask });
                return;
            }
        };
        let _ = reply.send(answer);
    }
}
