//! The main loop: it waits for an event, passes it to the decider, and carries out the resulting
//! actions.
//!
//! Only this code holds both the decider and the host. It reads the clock, and calls nothing that
//! blocks.

mod agents;
mod event_log;
mod history;
pub mod pool;
mod questions;
mod status;
pub mod upgrade;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    time::Duration,
};

use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot},
    time::sleep,
};

use crate::{
    agent::Agent,
    control::{Context, PendingRequest, Reply, documents, listeners::Gate},
    host::{Host, clock},
    observe::{
        log::{self, Log},
        metrics,
    },
    supervisor::{
        Supervisor,
        action::{Action, Answer},
        event::Event,
        input::Input,
        spec::Spec,
    },
    units::{Bytes, RequestId, Timestamp},
};
use event_log::EventLog;
use status::Status;

/// Maximum questions in the queue. Further clients wait at the socket.
const QUESTIONS: usize = 64;

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The main loop and its state.
#[derive(Debug)]
pub struct Driver {
    supervisor: Supervisor,
    host: AsyncFd<Host>,
    agent: Agent,
    /// Inputs from the driver itself, the oldest first.
    own_inputs: VecDeque<Input>,
    questions: mpsc::Receiver<PendingRequest>,
    /// The clients of changes that are not done yet.
    waiting: BTreeMap<RequestId, oneshot::Sender<Reply>>,
    next_request: u64,
    events: EventLog,
    context: Context,
    /// The interval of watchdog messages, and when the next one is due.
    watchdog: Option<(Duration, Timestamp)>,
    /// When to switch to another binary.
    upgrade_at: Option<Timestamp>,
    checks: upgrade::Checks,
    status: Status,
    /// When the service is observed next.
    observe_at: Timestamp,
    /// Closes and opens the control socket and the TCP port.
    gate: Gate,
    log: Log,
    /// The exit status, once the service has ended.
    exit: Option<i32>,
}

/// The channel for questions to the main loop.
pub type Questions = mpsc::Sender<PendingRequest>;

impl Driver {
    /// Prepares the machine, without starting the command; [`Driver::run`] does that. Call it in a
    /// tokio runtime, on the thread that will run it: the command dies with this thread.
    pub fn new(mut spec: Spec, log: Log, gate: Gate) -> io::Result<(Self, Questions)> {
        let now = clock::now();
        let (agent, warnings) = agents::prepare(&mut spec, None);
        let host = Host::set_up(&spec, now)?;
        let history = spec.control.history;
        // The jitter differs from start to start, so that services which start together do not act
        // together.
        let seed = now.as_nanos() ^ u64::from(std::process::id()).rotate_left(32);
        let mut supervisor = Supervisor::new(spec, seed, now);
        supervisor.number_reports_from(agent.kept().next_id());
        let (mut driver, sender) = Self::assemble((supervisor, host, agent), history, (log, gate))?;
        for warning in warnings {
            driver.publish(Event::Warning(warning));
        }
        Ok((driver, sender))
    }

    fn assemble(
        (supervisor, mut host, agent): (Supervisor, Host, Agent),
        history: usize,
        (log, gate): (Log, Gate),
    ) -> io::Result<(Self, Questions)> {
        let now = clock::now();
        if let Some(answers) = agent.answers() {
            host.watch_answers(&answers)?;
        }
        let watchdog = host.watchdog().map(|every| (every, now));
        let context = Context {
            pid: std::process::id(),
            version: VERSION.to_owned(),
            started: clock::unix_seconds(),
            upgrades: documents::UpgradesDoc::default(),
            offset: clock::unix_seconds() - now.since(Timestamp::default()).as_secs_f64(),
        };
        let (sender, questions) = mpsc::channel(QUESTIONS);
        let driver = Self {
            supervisor,
            host: host.into_async()?,
            agent,
            own_inputs: VecDeque::new(),
            questions,
            waiting: BTreeMap::new(),
            next_request: 0,
            events: EventLog::new(history),
            context,
            watchdog,
            upgrade_at: None,
            checks: upgrade::Checks::new(),
            status: Status::default(),
            observe_at: now,
            gate,
            log,
            exit: None,
        };
        Ok((driver, sender))
    }

    /// Runs until the service has ended. Returns the exit status, and the log, to be flushed at the
    /// end.
    pub async fn run(mut self) -> (i32, Log) {
        loop {
            self.settle();
            if let Some(status) = self.exit {
                self.end_dry_run();
                self.host.get_mut().remove_groups();
                self.refuse_pending();
                return (status, self.log);
            }
            self.upgrade_if_due();
            self.wait().await;
        }
    }

    /// Carries out actions, reports events and handles inputs, until there are no more.
    fn settle(&mut self) {
        loop {
            while let Some(action) = self.supervisor.poll_action() {
                self.perform(action);
            }
            while let Some(event) = self.supervisor.poll_event() {
                self.publish(event);
            }
            while let Some(warning) = self.agent.poll_warning() {
                self.publish(Event::Warning(warning));
            }
            // The clock is read for each input, because an action may have taken long.
            self.collect_answers();
            let own = self.own_inputs.pop_front();
            let Some(input) = own.or_else(|| self.host.get_mut().poll_event()) else {
                return;
            };
            self.pass_on_last_answers(&input);
            self.supervisor.handle_input(clock::now(), input);
        }
    }

    /// Waits for the next event. The order matters: kernel events come before a deadline, because a
    /// worker that has ended in time must not be killed for being late.
    async fn wait(&mut self) {
        let now = clock::now();
        let deadline = self.deadline();
        let ready = tokio::select! {
            biased;
            ready = self.host.readable_mut() => {
                // Events that are not handled now keep the descriptor readable.
                ready.map(|mut guard| guard.clear_ready()).is_ok()
            }
            input = self.checks.next() => {
                self.own_inputs.push_back(input);
                false
            }
            Some(asked) = self.questions.recv() => {
                self.on_question(asked);
                false
            }
            () = sleep(deadline.since(now)) => false,
        };
        let now = clock::now();
        if ready || self.host.get_ref().deadline() <= now {
            self.host.get_mut().collect(now);
        }
        self.send_watchdog(now);
        self.observe_if_due(now);
        if self.status.is_due(now) && self.host.get_ref().has_manager() {
            self.send_status(now);
        }
        if self.supervisor.poll_deadline().is_some_and(|at| at <= now) {
            // Kernel events that came meanwhile are handled first.
            self.host.get_mut().collect(now);
            self.settle();
            self.supervisor.handle_input(clock::now(), Input::Deadline);
        }
    }

    fn deadline(&self) -> Timestamp {
        let host = self.host.get_ref().deadline();
        let supervisor = self.supervisor.poll_deadline();
        let watchdog = self.watchdog.map(|(_, next)| next);
        supervisor
            .into_iter()
            .chain(watchdog)
            .chain(self.upgrade_at)
            .fold(host, Ord::min)
    }

    fn send_watchdog(&mut self, now: Timestamp) {
        if let Some((every, next)) = &mut self.watchdog
            && *next <= now
        {
            *next = now.later(*every);
            self.host.get_ref().send_watchdog();
        }
    }

    fn perform(&mut self, action: Action) {
        let Some(action) = self.perform_with_agent(action) else {
            return;
        };
        match action {
            Action::Reply { request, answer } => {
                if let Some(reply) = self.waiting.remove(&request) {
                    // The client may have disconnected.
                    let _ = reply.send(self.reply(answer));
                }
            }
            Action::Exit { status } => self.exit = Some(status),
            Action::CheckUpgrade { request } => self.check_upgrade(request),
            Action::Upgrade => self.schedule_upgrade(),
            action => self.host.get_mut().carry_out(clock::now(), action),
        }
    }

    /// The reply to a client. A requested report is sent as its document.
    fn reply(&self, answer: Answer) -> Reply {
        if let Answer::Reported(report) = answer
            && let Some(document) = self.agent.kept().get(report)
        {
            return Reply::Document(document.to_owned());
        }
        Reply::Answer(answer)
    }

    /// Logs and keeps an event, and passes it to the followers.
    fn publish(&mut self, mut event: Event) {
        if let Event::Ended(end) = &mut event {
            self.note_end(end);
        }
        if !log::is_wanted(event.level()) {
            return;
        }
        let moved = matches!(
            event,
            Event::WorkerReady { .. } | Event::Ended(_) | Event::Ready { .. }
        );
        let record = self.events.keep(event);
        log::write_event(&record);
        if let Ok(line) = serde_json::to_string(&documents::EventDoc::from(&record)) {
            self.agent.kept_mut().keep_event(line);
        }
        if moved {
            self.send_status(clock::now());
        }
    }

    fn send_status(&mut self, now: Timestamp) {
        if let Some(notice) = self.status.of(now, &self.supervisor.snapshot(now)) {
            self.host.get_ref().notify(now, &notice);
        }
    }

    /// Answers all clients that are still waiting.
    fn refuse_pending(&mut self) {
        for (_, reply) in std::mem::take(&mut self.waiting) {
            let _ = reply.send(Reply::Answer(Answer::Refused(
                "the service has stopped".to_owned(),
            )));
        }
    }

    /// The figures of the supervisor itself.
    fn own_metrics(&self) -> metrics::Own {
        metrics::Own {
            version: self.context.version.clone(),
            started: self.context.started,
            rss: self.host.get_ref().own_memory().unwrap_or(Bytes::ZERO),
            lost_log_lines: self.log.lost(),
        }
    }
}
