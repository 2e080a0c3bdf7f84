//! The loop of a pool: tasks go from the source to the workers, and their outcomes to the sink.

mod actions;
mod control;
mod frames;
mod given;
mod inputs;
mod observer;
mod parts;
mod prints;
mod reports;
mod start_errors;
mod template;

use std::{
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    io,
    path::PathBuf,
    task::Poll,
};

use tokio::{io::unix::AsyncFd, time::sleep};

use super::{Questions, agents::kept_at};
use crate::{
    agent::{Agent, kept::Kept, pool::Files},
    host::{Host, clock},
    queue::{Given, Task},
    supervisor::{
        action::About,
        pool::{
            Pool,
            input::{Input, Over, Seq},
        },
    },
    units::{Bytes, ReportId, RunId, Timestamp, WorkerId},
};

pub use observer::{Observer, Progress};
pub use parts::{Parts, Tally};

/// Maximum tasks that one turn of the loop takes from the source.
const AT_ONCE: usize = 4096;

/// The state of the loop.
pub struct PoolDriver {
    pool: Pool,
    control: control::Control,
    /// Keeps reports and events.
    agent: Agent,
    /// The reports that workers have not sent yet.
    reports: BTreeMap<ReportId, About>,
    host: AsyncFd<Host>,
    parts: Parts,
    files: Files,
    /// The files with which a worker makes a report are written.
    has_agent_files: bool,
    python: PathBuf,
    tasks: BTreeMap<Seq, Task>,
    keys: BTreeMap<Box<str>, u32>,
    run: RunId,
    /// The template's end of its socket, until the template has inherited it.
    inherited: Option<i32>,
    /// Why the template or a worker could not start, as JSON (see `start_errors`).
    start_error: Option<Vec<u8>>,
    /// The template's end needs no further explanation: it reported an error, or was stopped on
    /// purpose.
    template_end_known: bool,
    template_ready: bool,
    to: BTreeMap<WorkerId, Vec<u8>>,
    own: VecDeque<Input>,
    given: Vec<Given>,
    prints: prints::Prints,
    source_ended: bool,
    broken: Option<io::Error>,
    tally: Tally,
    over: Option<Over>,
    warned_caps: bool,
    /// The warning that a worker cannot be forked was shown.
    warned_forks: bool,
    /// The hint to use `--plain` was shown.
    hinted_plain: bool,
    /// The last known memory peak of each worker.
    peaks: BTreeMap<WorkerId, Bytes>,
    begun: Timestamp,
    /// When the progress was last shown.
    shown: Timestamp,
}

impl std::fmt::Debug for PoolDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolDriver")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl PoolDriver {
    /// Sets up control groups, signals and directories. Starts no process before [`Self::run`].
    ///
    /// # Errors
    /// Some of these cannot be set up.
    pub fn new(parts: Parts) -> io::Result<(Self, Questions)> {
        let now = clock::now();
        let host = Host::set_up(&parts.spec, now)?;
        let files = Files::install(&parts.directory, &parts.spec.name)?;
        let (control, questions) = control::Control::new(parts.spec.control.history, now);
        let agent = Agent::without_channel(Kept::open(kept_at(&parts.spec), parts.spec.leaks.kept));
        let mut pool = Pool::new(parts.pool.clone());
        pool.number_reports_from(agent.kept().next_id());
        let driver = Self {
            control,
            pool,
            agent,
            reports: BTreeMap::new(),
            host: host.into_async()?,
            files,
            has_agent_files: false,
            python: parts.spec.command.program.clone(),
            parts,
            tasks: BTreeMap::new(),
            keys: BTreeMap::new(),
            run: RunId(0),
            inherited: None,
            start_error: None,
            template_end_known: false,
            template_ready: false,
            to: BTreeMap::new(),
            own: VecDeque::new(),
            given: Vec::new(),
            prints: prints::Prints::default(),
            source_ended: false,
            broken: None,
            tally: Tally {
                done: 0,
                failed: 0,
                abandoned: 0,
                over: Over::Done,
                stopped_by: None,
            },
            over: None,
            warned_caps: false,
            warned_forks: false,
            hinted_plain: false,
            peaks: BTreeMap::new(),
            begun: now,
            shown: now,
        };
        Ok((driver, questions))
    }

    /// Runs until all tasks have their outcomes, or the pool stops early.
    ///
    /// # Errors
    /// Tasks cannot be read, or results cannot be written.
    pub async fn run(mut self) -> io::Result<Tally> {
        loop {
            self.settle();
            if let Some(over) = self.over {
                self.tally.over = over;
                break;
            }
            self.wait().await;
        }
        self.finish_prints().await;
        if self.tally.over == Over::GaveUp {
            let error = self.start_error.take().unwrap_or_default();
            self.parts.observer.say(&start_errors::full_message(&error));
            self.parts.sink.give_up(&error);
        }
        if matches!(self.tally.over, Over::Done | Over::Failed) {
            // If there were no tasks, no worker was started and `begin` was not called yet.
            self.parts.sink.begin();
        }
        if self.reader_is_gone() {
            // A reader that closed the output does not expect a message about missing results.
            self.tally.abandoned = 0;
        }
        let progress = self.progress(clock::now());
        self.parts.observer.finish(&progress);
        // After a signal or the timeout, the rest of the output is dropped.
        let _ = self.wait_until(prints::Until::AllWritten).await;
        self.control.close();
        self.keep_events();
        self.agent.kept_mut().flush();
        while let Some(warning) = self.agent.poll_warning() {
            self.parts.observer.say(&warning);
        }
        self.host.get_mut().remove_groups();
        let finished = poll_fn(|cx| self.parts.sink.poll_finish(cx)).await;
        match self.broken {
            Some(error) => Err(error),
            None => finished.map(|()| self.tally),
        }
    }

    /// Whether the reader of the results is gone, so that running tasks need not finish.
    fn reader_is_gone(&self) -> bool {
        let kind = self.broken.as_ref().map(io::Error::kind);
        matches!(
            kind,
            Some(io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe)
        )
    }

    /// The source or the sink has failed.
    fn on_broken(&mut self, error: io::Error) {
        self.source_ended = true;
        self.broken.get_or_insert(error);
        let stop = if self.reader_is_gone() {
            Input::StopAtOnce
        } else {
            Input::Stop
        };
        self.own.push_back(stop);
    }

    fn settle(&mut self) {
        loop {
            self.perform();
            self.keep_events();
            if let Some(event) = self.own.pop_front() {
                self.pool.handle_input(clock::now(), event);
            } else if let Some(event) = self.host.get_mut().poll_event() {
                self.on_machine(event);
            } else if let Some(news) = self.host.get_mut().poll_news() {
                self.on_news(news);
            } else {
                break;
            }
        }
        self.observe_if_due(clock::now());
        self.send_all();
        let credit = self.pool.credit();
        self.parts.sink.credit(credit);
        self.parts.sink.flush();
    }

    fn hand_in(&mut self, event: Input) {
        self.pool.handle_input(clock::now(), event);
        self.perform();
    }

    async fn wait(&mut self) {
        let now = clock::now();
        let deadline = self.host.get_ref().deadline();
        let show_at = self.show_at();
        let deadline = self
            .pool
            .poll_deadline()
            .into_iter()
            .chain(show_at)
            .fold(deadline, Ord::min);
        let wants = self.pool.wants().min(AT_ONCE);
        let source_ended = self.source_ended;
        if source_ended && self.tasks.is_empty() {
            self.parts.sink.complete();
        }
        let (source, sink) = (&mut self.parts.source, &mut self.parts.sink);
        let given = &mut self.given;
        let more = poll_fn(|cx| {
            if let Poll::Ready(gone) = source.poll_gone(cx) {
                return Poll::Ready(Err(gone));
            }
            // While the sink is behind, no new tasks are taken.
            match sink.poll_room(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {}
            }
            if wants == 0 || source_ended {
                return Poll::Pending;
            }
            source.poll_tasks(cx, wants, given)
        });
        let mut collected = false;
        let observer = &mut self.parts.observer;
        let control = &mut self.control;
        let mut asked = None;
        tokio::select! {
            biased;
            () = poll_fn(|cx| observer.poll_room(cx)), if self.prints.is_paused => {
                self.resume_prints();
            }
            woken = self.host.readable_mut() => {
                if let Ok(mut guard) = woken {
                    // RACE: readiness is edge-triggered; it is kept while something is unread.
                    let more = guard.get_inner_mut().collect(clock::now());
                    if !more {
                        guard.clear_ready();
                    }
                    collected = true;
                }
            }
            more = more => match more {
                Ok(true) => {}
                Ok(false) => self.source_ended = true,
                Err(error) => self.on_broken(error),
            },
            question = control.next() => asked = Some(question),
            () = sleep(deadline.since(now)) => {}
        }
        asked.into_iter().for_each(|asked| self.on_question(asked));
        self.take_given();
        let now = clock::now();
        if !collected && self.host.get_ref().deadline() <= now {
            self.host.get_mut().collect(now);
        }
        if self.pool.poll_deadline().is_some_and(|at| at <= now) {
            self.own.push_back(Input::Deadline);
        }
        if show_at.is_some_and(|at| at <= now) {
            self.show(now);
        }
    }
}
