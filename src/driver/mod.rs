//! The one loop: wait for one thing, hand it in, carry out what comes out.
//!
//! The only code that holds both sides. It reads the clock; nothing that it calls waits.

mod agents;
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
    sync::{broadcast, mpsc, oneshot},
    time::sleep,
};

use crate::{
    agent::Agent,
    control::{Asked, Context, Reply, doors::Keys, wire},
    host::{Host, clock},
    observe::{
        log::{self, Log},
        metrics,
    },
    supervisor::{
        Supervisor,
        action::{Action, Answer},
        event::Event,
        report::Report,
        spec::Spec,
        tell::Told,
    },
    units::{Bytes, RequestId, Timestamp},
};
use status::Status;

/// Followers that lag by more than this are told how many events they have missed.
const FOLLOWERS_BEHIND: usize = 1024;
/// Questions that wait to be taken in; whoever asks more waits at the socket.
const QUESTIONS: usize = 64;

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The loop and what it holds.
#[derive(Debug)]
pub struct Driver {
    supervisor: Supervisor,
    host: AsyncFd<Host>,
    agent: Agent,
    /// What happened in our own hands, oldest first.
    own: VecDeque<Event>,
    questions: mpsc::Receiver<Asked>,
    waiting: BTreeMap<RequestId, oneshot::Sender<Reply>>,
    next_request: u64,
    /// Oldest first; never longer than `history`.
    past: VecDeque<Told>,
    history: usize,
    next_event: u64,
    live: broadcast::Sender<Told>,
    context: Context,
    watchdog: Option<(Duration, Timestamp)>,
    /// Another binary takes over then.
    upgrade_at: Option<Timestamp>,
    checks: upgrade::Checks,
    status: Status,
    /// Of the doors by which questions come.
    keys: Keys,
    log: Log,
    exit: Option<i32>,
}

/// Where questions are sent to reach the loop.
pub type Questions = mpsc::Sender<Asked>;

impl Driver {
    /// Takes hold of the machine. Nothing is started before [`Driver::run`]. To be called within a
    /// tokio runtime, on the thread that will run it: the command dies with this thread.
    pub fn new(mut spec: Spec, log: Log, keys: Keys) -> io::Result<(Self, Questions)> {
        let now = clock::now();
        let (agent, warnings) = agents::prepare(&mut spec, None);
        let host = Host::take(&spec, now)?;
        let history = spec.control.history;
        // The jitter differs from start to start, so that services that start together spread.
        let seed = now.as_nanos() ^ u64::from(std::process::id()).rotate_left(32);
        let mut supervisor = Supervisor::new(spec, seed, now);
        supervisor.number_reports_from(agent.kept().next_id());
        let (mut driver, sender) = Self::hold((supervisor, host, agent), history, (log, keys))?;
        for warning in warnings {
            driver.tell(Report::Warning(warning));
        }
        Ok((driver, sender))
    }

    fn hold(
        (supervisor, mut host, agent): (Supervisor, Host, Agent),
        history: usize,
        (log, keys): (Log, Keys),
    ) -> io::Result<(Self, Questions)> {
        let now = clock::now();
        if let Some(answers) = agent.answers() {
            host.listen_at(&answers)?;
        }
        let watchdog = host.watchdog().map(|every| (every, now));
        let context = Context {
            pid: std::process::id(),
            version: VERSION.to_owned(),
            started: clock::unix_seconds(),
            upgrades: wire::UpgradesDoc::default(),
            offset: clock::unix_seconds() - now.since(Timestamp::default()).as_secs_f64(),
        };
        let (sender, questions) = mpsc::channel(QUESTIONS);
        let driver = Self {
            supervisor,
            host: host.into_async()?,
            agent,
            own: VecDeque::new(),
            questions,
            waiting: BTreeMap::new(),
            next_request: 0,
            past: VecDeque::new(),
            history,
            next_event: 1,
            live: broadcast::channel(FOLLOWERS_BEHIND).0,
            context,
            watchdog,
            upgrade_at: None,
            checks: upgrade::Checks::new(),
            status: Status::default(),
            keys,
            log,
            exit: None,
        };
        Ok((driver, sender))
    }

    /// Runs until the service is over. The result is the exit status, and the log, to be flushed
    /// when all is said.
    pub async fn run(mut self) -> (i32, Log) {
        loop {
            self.settle();
            if let Some(status) = self.exit {
                self.host.get_mut().leave();
                self.refuse_late();
                return (status, self.log);
            }
            self.upgrade_if_due();
            self.wait().await;
        }
    }

    /// Carries out what is asked, tells what is to be told, hands in what has happened, until
    /// nothing of it is left.
    fn settle(&mut self) {
        loop {
            while let Some(action) = self.supervisor.poll_action() {
                self.perform(action);
            }
            while let Some(report) = self.supervisor.poll_report() {
                self.tell(report);
            }
            while let Some(warning) = self.agent.poll_warning() {
                self.tell(Report::Warning(warning));
            }
            // The time is read for each event: one may have taken long to carry out.
            self.collect_answers();
            let own = self.own.pop_front();
            let Some(event) = own.or_else(|| self.host.get_mut().poll_event()) else {
                return;
            };
            self.count_the_dead(&event);
            self.supervisor.handle_event(clock::now(), event);
        }
    }

    /// Waits for one thing. The order matters: what the kernel tells comes before a deadline, for a
    /// worker that has ended in time must not be killed for being late.
    async fn wait(&mut self) {
        let now = clock::now();
        let deadline = self.deadline();
        let ready = tokio::select! {
            biased;
            ready = self.host.readable_mut() => {
                // Whatever is not taken now keeps the descriptor readable.
                ready.map(|mut guard| guard.clear_ready()).is_ok()
            }
            event = self.checks.next() => {
                self.own.push_back(event);
                false
            }
            Some(asked) = self.questions.recv() => {
                self.on_asked(asked);
                false
            }
            () = sleep(deadline.since(now)) => false,
        };
        let now = clock::now();
        if ready || self.host.get_ref().deadline() <= now {
            self.host.get_mut().collect(now);
        }
        self.pat_watchdog(now);
        if self.status.is_due(now) && self.host.get_ref().has_manager() {
            self.say_status(now);
        }
        if self.supervisor.poll_deadline().is_some_and(|at| at <= now) {
            // What the kernel has told in the meantime is handed in first.
            self.host.get_mut().collect(now);
            self.settle();
            self.supervisor.handle_event(clock::now(), Event::Deadline);
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

    fn pat_watchdog(&mut self, now: Timestamp) {
        if let Some((every, next)) = &mut self.watchdog
            && *next <= now
        {
            *next = now.later(*every);
            self.host.get_ref().pat_watchdog();
        }
    }

    fn perform(&mut self, action: Action) {
        let Some(action) = self.perform_with_agent(action) else {
            return;
        };
        match action {
            Action::Reply { request, answer } => {
                if let Some(reply) = self.waiting.remove(&request) {
                    // Whoever asked may have gone.
                    let _ = reply.send(self.reply(answer));
                }
            }
            Action::Exit { status } => self.exit = Some(status),
            Action::CheckUpgrade { request } => self.check_upgrade(request),
            Action::Upgrade => self.upgrade_soon(),
            action => self.host.get_mut().carry_out(clock::now(), action),
        }
    }

    /// A report that was asked for is answered with what it says.
    fn reply(&self, answer: Answer) -> Reply {
        if let Answer::Reported(report) = answer
            && let Some(document) = self.agent.kept().get(report)
        {
            return Reply::Document(document.to_owned());
        }
        Reply::Answer(answer)
    }

    fn tell(&mut self, report: Report) {
        let moved = matches!(
            report,
            Report::WorkerReady { .. } | Report::Ended(_) | Report::Ready { .. }
        );
        let told = Told {
            id: self.next_event,
            at: clock::unix_seconds(),
            mono_ns: clock::now().as_nanos(),
            report,
        };
        self.next_event += 1;
        log::tell(&told);
        if let Ok(line) = serde_json::to_string(&wire::EventDoc::from(&told)) {
            self.agent.keep_event(line);
        }
        if self.past.len() >= self.history {
            self.past.pop_front();
        }
        self.past.push_back(told.clone());
        // Nobody may be following.
        let _ = self.live.send(told);
        if moved {
            self.say_status(clock::now());
        }
    }

    fn say_status(&mut self, now: Timestamp) {
        if let Some(notice) = self.status.of(now, &self.supervisor.snapshot(now)) {
            self.host.get_ref().notify(now, &notice);
        }
    }

    /// Whoever has no answer yet gets one.
    fn refuse_late(&mut self) {
        for (_, reply) in std::mem::take(&mut self.waiting) {
            let _ = reply.send(Reply::Answer(Answer::Refused(
                "the service is over".to_owned(),
            )));
        }
    }

    fn own(&self) -> metrics::Own {
        metrics::Own {
            version: self.context.version.clone(),
            started: self.context.started,
            rss: self.host.get_ref().own_memory().unwrap_or(Bytes::ZERO),
            lost_log_lines: self.log.lost(),
        }
    }
}
