//! Status, events, metrics and requests of operators, as for any other service.

use std::collections::BTreeSet;

use tokio::sync::{mpsc, oneshot};

use super::PoolDriver;
use crate::{
    control::{Context, PendingRequest, Reply, documents},
    driver::{Questions, VERSION, event_log::EventLog, history, questions::Sources},
    host::clock,
    observe::metrics,
    supervisor::{
        action::Answer,
        event::{Event, Who},
        input::{Ask, Stop},
        pool::input::Input,
    },
    units::{Bytes, Timestamp, WorkerId},
};

/// Maximum questions in the queue. Further clients wait at the socket.
const QUESTIONS: usize = 64;

/// What the pool's control socket needs.
#[derive(Debug)]
pub(super) struct Control {
    questions: mpsc::Receiver<PendingRequest>,
    events: EventLog,
    context: Context,
    /// Requests to replace workers, with the workers that have not ended yet.
    recycles: Vec<Recycle>,
    stops: Vec<oneshot::Sender<Reply>>,
    /// Requests for reports of workers that have not answered yet.
    reports: Vec<(WorkerId, oneshot::Sender<Reply>)>,
    /// When the pool is observed next.
    observe_at: Timestamp,
}

#[derive(Debug)]
struct Recycle {
    reply: oneshot::Sender<Reply>,
    total: usize,
    left: BTreeSet<WorkerId>,
}

impl Control {
    pub(super) fn new(history: usize, now: Timestamp) -> (Self, Questions) {
        let (sender, questions) = mpsc::channel(QUESTIONS);
        let started = clock::unix_seconds();
        let control = Self {
            questions,
            events: EventLog::new(history),
            context: Context {
                pid: std::process::id(),
                version: VERSION.to_owned(),
                started,
                upgrades: crate::control::documents::UpgradesDoc::default(),
                offset: started - now.since(Timestamp::default()).as_secs_f64(),
            },
            recycles: Vec::new(),
            stops: Vec::new(),
            reports: Vec::new(),
            observe_at: now,
        };
        (control, sender)
    }

    /// The next question. Never ready without a control socket.
    pub(super) async fn next(&mut self) -> PendingRequest {
        match self.questions.recv().await {
            Some(asked) => asked,
            None => std::future::pending().await,
        }
    }

    /// Answers the requests for a report of this worker.
    pub(super) fn answer_reports(&mut self, worker: WorkerId, answer: impl Fn() -> Reply) {
        let its = |(of, _): &mut (WorkerId, _)| *of == worker;
        for (_, reply) in self.reports.extract_if(.., its) {
            // The client may have disconnected.
            let _ = reply.send(answer());
        }
    }

    fn on_ended(&mut self, worker: WorkerId) {
        for recycle in &mut self.recycles {
            recycle.left.remove(&worker);
        }
        let done = |recycle: &mut Recycle| recycle.left.is_empty();
        for recycle in self.recycles.extract_if(.., done) {
            let text = match recycle.total {
                1 => "1 worker was replaced".to_owned(),
                total => format!("{total} workers were replaced"),
            };
            // The client may have disconnected.
            let _ = recycle.reply.send(Reply::Answer(Answer::Done(text)));
        }
    }

    /// Answers all waiting clients, at the end of the pool.
    pub(super) fn close(&mut self) {
        for stop in self.stops.drain(..) {
            let text = "the service has stopped".to_owned();
            let _ = stop.send(Reply::Answer(Answer::Done(text)));
        }
        for (_, reply) in self.reports.drain(..) {
            let text = "the service has stopped".to_owned();
            let _ = reply.send(Reply::Answer(Answer::Refused(text)));
        }
        for recycle in self.recycles.drain(..) {
            let text = "the service has stopped".to_owned();
            let _ = recycle.reply.send(Reply::Answer(Answer::Refused(text)));
        }
    }
}

impl PoolDriver {
    /// Keeps an observation, if one is due.
    pub(super) fn observe_if_due(&mut self, now: Timestamp) {
        if now >= self.control.observe_at {
            self.control.observe_at = now.next_multiple(history::EVERY);
            let observation = self.pool.observe(now);
            self.agent
                .kept_mut()
                .observe(history::unix_second(), &observation);
        }
    }

    /// Stores new events for the control socket.
    pub(super) fn keep_events(&mut self) {
        while let Some(event) = self.pool.poll_event() {
            let ended = match &event {
                Event::Ended(end) => {
                    self.agent.kept_mut().note_end(history::unix_second(), end);
                    match end.who {
                        Who::Worker(worker) => Some(worker),
                        Who::Server => None,
                    }
                }
                _ => None,
            };
            let record = self.control.events.keep(event);
            if let Ok(line) = serde_json::to_string(&documents::EventDoc::from(&record)) {
                self.agent.kept_mut().keep_event(line);
            }
            if let Some(worker) = ended {
                self.control.on_ended(worker);
                self.forget_reports(worker, "it ended before it answered");
            }
        }
    }

    pub(super) fn on_question(&mut self, PendingRequest { question, reply }: PendingRequest) {
        let snapshot = self.pool.snapshot(clock::now());
        let sources = Sources {
            snapshot: &snapshot,
            context: &self.control.context,
            events: &self.control.events,
            kept: Some(self.agent.kept()),
            own: metrics::Own {
                version: VERSION.to_owned(),
                started: self.control.context.started,
                rss: self.host.get_ref().own_memory().unwrap_or(Bytes::ZERO),
                lost_log_lines: 0,
            },
        };
        match sources.answer(question) {
            // The client may have disconnected.
            Ok(answer) => drop(reply.send(answer)),
            Err(ask) => self.on_request(ask, reply),
        }
    }

    fn on_request(&mut self, ask: Ask, reply: oneshot::Sender<Reply>) {
        let serving = self.pool.serving();
        let refuse = |reply: oneshot::Sender<Reply>, why: &str| {
            let _ = reply.send(Reply::Answer(Answer::Refused(why.to_owned())));
        };
        match ask {
            Ask::Stop(how) => {
                self.control.stops.push(reply);
                self.own.push_back(match how {
                    Stop::Graceful => Input::Stop,
                    Stop::Now => {
                        self.prints.is_urgent = true;
                        Input::StopAtOnce
                    }
                });
            }
            Ask::Recycle(worker) if serving.contains(&worker) => {
                self.recycle(BTreeSet::from([worker]), reply);
            }
            Ask::Recycle(worker) => {
                let text = format!("no worker {worker} takes tasks");
                let _ = reply.send(Reply::Answer(Answer::Unknown(text)));
            }
            Ask::RecycleAll if !serving.is_empty() => self.recycle(serving, reply),
            Ask::RecycleAll => refuse(reply, "no worker takes tasks at the moment"),
            Ask::Reload => refuse(
                reply,
                "a pool imports its function only once; restart the pool instead",
            ),
            Ask::Report(worker) if serving.contains(&worker) => {
                self.own.push_back(Input::Report(worker));
                self.control.reports.push((worker, reply));
            }
            Ask::Report(worker) => {
                let text = format!("no worker {worker} takes tasks");
                let _ = reply.send(Reply::Answer(Answer::Unknown(text)));
            }
            Ask::Scale(_) => refuse(reply, "the number of a pool's workers is fixed"),
            Ask::Upgrade => refuse(reply, "a pool ends with its tasks and is not upgraded"),
        }
    }

    fn recycle(&mut self, workers: BTreeSet<WorkerId>, reply: oneshot::Sender<Reply>) {
        let inputs = workers.iter().map(|worker| Input::Recycle(*worker));
        self.own.extend(inputs);
        self.control.recycles.push(Recycle {
            reply,
            total: workers.len(),
            left: workers,
        });
    }
}
