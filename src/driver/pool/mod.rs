//! The loop of a pool: tasks from their source to the workers, what they say to the sink.

mod doing;
mod frames;
mod given;
mod hearing;
mod onlooker;
mod parts;
mod prints;
mod starts;
mod template;

use std::{
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    io,
    path::PathBuf,
    task::Poll,
};

use tokio::{io::unix::AsyncFd, time::sleep};

use crate::{
    agent::pool::Files,
    host::{Host, clock},
    queue::{Given, Task},
    supervisor::pool::{
        Pool,
        event::{Event, Over, Seq},
    },
    units::{Bytes, RunId, Timestamp, WorkerId},
};

pub use onlooker::{Onlooker, Standing, finishing};
pub use parts::{Parts, Tally};

/// What one turn reads of the source at most.
const AT_ONCE: usize = 4096;

/// The loop and what it holds.
pub struct PoolDriver {
    pool: Pool,
    host: AsyncFd<Host>,
    parts: Parts,
    files: Files,
    python: PathBuf,
    tasks: BTreeMap<Seq, Task>,
    keys: BTreeMap<Box<str>, u32>,
    run: RunId,
    /// Its end of the template's socket, until the template has it.
    inherited: Option<i32>,
    /// The words of what could not start.
    last_words: Option<Vec<u8>>,
    /// It is known why the template ends.
    template_explained: bool,
    template_ready: bool,
    to: BTreeMap<WorkerId, Vec<u8>>,
    own: VecDeque<Event>,
    given: Vec<Given>,
    prints: prints::Prints,
    source_ended: bool,
    broken: Option<io::Error>,
    tally: Tally,
    over: Option<Over>,
    warned_caps: bool,
    /// It was said that a worker cannot be forked.
    warned_forks: bool,
    /// It was said that lines are to be JSON.
    hinted: bool,
    /// The most that each worker held, as it was found last.
    peaks: BTreeMap<WorkerId, Bytes>,
    begun: Timestamp,
    /// When how far it is was shown last.
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
    /// Takes hold of the machine. Nothing is started before [`Self::run`].
    ///
    /// # Errors
    /// What of the machine cannot be had.
    pub fn new(parts: Parts) -> io::Result<Self> {
        let now = clock::now();
        let host = Host::take(&parts.spec, now)?;
        let files = Files::install(&parts.directory, &parts.spec.name)?;
        Ok(Self {
            pool: Pool::new(parts.pool.clone()),
            host: host.into_async()?,
            files,
            python: parts.spec.command.program.clone(),
            parts,
            tasks: BTreeMap::new(),
            keys: BTreeMap::new(),
            run: RunId(0),
            inherited: None,
            last_words: None,
            template_explained: false,
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
                cut: 0,
                over: Over::Done,
                stopped_by: None,
            },
            over: None,
            warned_caps: false,
            warned_forks: false,
            hinted: false,
            peaks: BTreeMap::new(),
            begun: now,
            shown: now,
        })
    }

    /// Runs until all tasks have their results, or no more can be had.
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
            let words = self.last_words.take().unwrap_or_default();
            self.parts.onlooker.say(&starts::failure(&words));
            self.parts.sink.give_up(&words);
        }
        if matches!(self.tally.over, Over::Done | Over::Failed) {
            // Perhaps no worker was needed.
            self.parts.sink.begin();
        }
        if self.reader_is_gone() {
            // Quietly: nobody has asked for more.
            self.tally.cut = 0;
        }
        let standing = self.standing(clock::now());
        self.parts.onlooker.finish(&standing);
        self.until_room(true).await;
        self.host.get_mut().leave();
        let finished = poll_fn(|cx| self.parts.sink.poll_finish(cx)).await;
        match self.broken {
            Some(error) => Err(error),
            None => finished.map(|()| self.tally),
        }
    }

    /// Nobody waits for results: what is under way need not be finished.
    fn reader_is_gone(&self) -> bool {
        let kind = self.broken.as_ref().map(io::Error::kind);
        matches!(
            kind,
            Some(io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe)
        )
    }

    /// No more tasks come, or results cannot be written.
    fn on_broken(&mut self, error: io::Error) {
        self.source_ended = true;
        self.broken.get_or_insert(error);
        let stop = if self.reader_is_gone() {
            Event::StopAtOnce
        } else {
            Event::Stop
        };
        self.own.push_back(stop);
    }

    fn settle(&mut self) {
        loop {
            self.perform();
            if let Some(event) = self.own.pop_front() {
                self.pool.handle_event(clock::now(), event);
            } else if let Some(event) = self.host.get_mut().poll_event() {
                self.on_machine(event);
            } else if let Some(news) = self.host.get_mut().poll_news() {
                self.on_news(news);
            } else {
                break;
            }
        }
        self.send_all();
        let credit = self.pool.credit();
        self.parts.sink.credit(credit);
        self.parts.sink.flush();
    }

    fn hand_in(&mut self, event: Event) {
        self.pool.handle_event(clock::now(), event);
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
            // The sink is behind: nothing new is begun until it has caught up.
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
        let onlooker = &mut self.parts.onlooker;
        tokio::select! {
            biased;
            () = poll_fn(|cx| onlooker.poll_room(cx)), if self.prints.waits => {
                self.take_prints_again();
            }
            woken = self.host.readable_mut() => {
                if let Ok(mut guard) = woken {
                    // RACE: readiness is told once; what was left unread must not wait for more.
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
            () = sleep(deadline.since(now)) => {}
        }
        self.take_given();
        let now = clock::now();
        if !collected && self.host.get_ref().deadline() <= now {
            self.host.get_mut().collect(now);
        }
        if self.pool.poll_deadline().is_some_and(|at| at <= now) {
            self.own.push_back(Event::Deadline);
        }
        if show_at.is_some_and(|at| at <= now) {
            self.show(now);
        }
    }
}
