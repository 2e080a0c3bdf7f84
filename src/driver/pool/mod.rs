//! The loop of a pool: tasks from their source to the workers, what they say to the sink.

mod frames;

use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    io,
    path::PathBuf,
    task::Poll,
};

use tokio::{io::unix::AsyncFd, time::sleep};

use crate::{
    agent::{
        frames as wire,
        pool::{Files, Orders},
    },
    host::{Host, clock, pool::News},
    queue::{Detail, Failure, Given, Outcome, Sink, Source, Task, Verdict},
    supervisor::{
        action,
        event::{self as machine, CapMechanism, Ended},
        pool::{
            Pool,
            event::{Action, Event, Fate, Over, Seq, SlotId},
            spec::PoolSpec,
        },
        spec::Spec,
    },
    units::{Bytes, RunId, Signal, WorkerId},
};

/// What one turn reads of the source at most.
const AT_ONCE: usize = 4096;

/// What a pool is made of.
pub struct Parts {
    /// The wishes.
    pub pool: PoolSpec,
    /// The machine's side of them: the command is the Python interpreter.
    pub spec: Spec,
    /// The Python side of them.
    pub orders: Orders,
    /// An executor's setup, for each worker.
    pub setup: Option<Vec<u8>>,
    /// Where tasks come from.
    pub source: Box<dyn Source>,
    /// Where results go.
    pub sink: Box<dyn Sink>,
    /// Where the Python side's files are put.
    pub directory: PathBuf,
    /// Says a line to whoever looks on.
    pub say: fn(&str),
    /// Passes on a line that a task has printed.
    pub print: fn(&str),
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

/// How it went.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    /// Tasks that returned.
    pub done: u64,
    /// Tasks that failed.
    pub failed: u64,
    /// How the pool ended.
    pub over: Over,
    /// The signal that stopped it.
    pub stopped_by: Option<Signal>,
}

/// The loop and what it holds.
pub struct PoolDriver {
    pool: Pool,
    host: AsyncFd<Host>,
    parts: Parts,
    files: Files,
    python: PathBuf,
    tasks: HashMap<Seq, Task>,
    keys: HashMap<Box<str>, u32>,
    run: RunId,
    /// Its end of the template's socket, until the template has it.
    inherited: Option<i32>,
    /// The words of what could not start.
    last_words: Option<Vec<u8>>,
    to: HashMap<WorkerId, Vec<u8>>,
    own: VecDeque<Event>,
    given: Vec<Given>,
    source_ended: bool,
    broken: Option<io::Error>,
    tally: Tally,
    over: Option<Over>,
    warned_caps: bool,
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
        let host = Host::take(&parts.spec, clock::now())?;
        let files = Files::install(&parts.directory, &parts.spec.name)?;
        Ok(Self {
            pool: Pool::new(parts.pool.clone()),
            host: host.into_async()?,
            files,
            python: parts.spec.command.program.clone(),
            parts,
            tasks: HashMap::new(),
            keys: HashMap::new(),
            run: RunId(0),
            inherited: None,
            last_words: None,
            to: HashMap::new(),
            own: VecDeque::new(),
            given: Vec::new(),
            source_ended: false,
            broken: None,
            tally: Tally {
                done: 0,
                failed: 0,
                over: Over::Done,
                stopped_by: None,
            },
            over: None,
            warned_caps: false,
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
        if self.tally.over == Over::GaveUp {
            let words = self.last_words.take().unwrap_or_default();
            (self.parts.say)(&frames::start_failure(&words));
            self.parts.sink.give_up(&words);
        }
        self.host.get_mut().leave();
        let finished = poll_fn(|cx| self.parts.sink.poll_finish(cx)).await;
        match self.broken {
            Some(error) => Err(error),
            None => finished.map(|()| self.tally),
        }
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
        let deadline = self
            .pool
            .poll_deadline()
            .into_iter()
            .fold(deadline, Ord::min);
        let wants = self.pool.wants().min(AT_ONCE);
        let source_ended = self.source_ended;
        let (source, sink) = (&mut self.parts.source, &mut self.parts.sink);
        let given = &mut self.given;
        let more = poll_fn(|cx| {
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
        let mut ready = false;
        tokio::select! {
            biased;
            woken = self.host.readable_mut() => {
                ready = woken.map(|mut guard| guard.clear_ready()).is_ok();
            }
            more = more => match more {
                Ok(true) => {}
                Ok(false) => self.source_ended = true,
                Err(error) => {
                    self.broken.get_or_insert(error);
                    self.source_ended = true;
                    self.own.push_back(Event::Stop);
                }
            },
            () = sleep(deadline.since(now)) => {}
        }
        self.take_given();
        let now = clock::now();
        if ready || self.host.get_ref().deadline() <= now {
            self.host.get_mut().collect(now);
        }
        if self.pool.poll_deadline().is_some_and(|at| at <= now) {
            self.own.push_back(Event::Deadline);
        }
    }

    fn take_given(&mut self) {
        for given in std::mem::take(&mut self.given) {
            self.parts.sink.expect(given.seq());
            match given {
                Given::Task(task) => {
                    let key = self.key_of(task.key.as_deref());
                    let seq = task.seq;
                    self.tasks.insert(seq, task);
                    self.own.push_back(Event::Came { seq, key });
                }
                Given::Bad { seq, id, message } => {
                    let failure = Failure {
                        cause: "unreadable".to_owned(),
                        attempts: 0,
                        detail: Detail::Told(message),
                    };
                    self.put_failure((seq, id), None, None, failure);
                    if self.parts.pool.stop_on_error {
                        self.own.push_back(Event::Stop);
                    }
                }
            }
        }
        if self.source_ended {
            self.own.push_back(Event::SourceEnded);
        }
    }

    fn key_of(&mut self, key: Option<&str>) -> u32 {
        let Some(key) = key else { return 0 };
        if let Some(known) = self.keys.get(key) {
            return *known;
        }
        let new = u32::try_from(self.keys.len() + 1).unwrap_or(0);
        // More kinds than this are not told apart: memory stays what it is.
        if new > 4000 {
            return 0;
        }
        self.keys.insert(key.into(), new);
        new
    }

    fn perform(&mut self) {
        while let Some(action) = self.pool.poll_action() {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        {
            let now = clock::now();
            match action {
                Action::StartTemplate => self.start_template(),
                Action::EndTemplate => {
                    self.send_all();
                    let run = self.run;
                    let kill = action::Action::KillRun { run };
                    self.host.get_mut().carry_out(now, kill);
                }
                Action::Budget(budget) => {
                    let budget = action::Action::Budget { budget };
                    self.host.get_mut().carry_out(now, budget);
                }
                Action::RaiseNest(slot, cap) => self.host.get_mut().raise_nest(slot.0, cap),
                Action::Fork(slot, worker) => self.host.get_mut().fork_child(slot.0, worker),
                Action::Send(worker, seq) => self.send(worker, seq),
                Action::Quit(worker) => {
                    let to = self.to.entry(worker).or_default();
                    wire::write(to, wire::QUIT, 0, &[]);
                }
                Action::KillSlot(slot) => self.host.get_mut().kill_slot(now, slot.0),
                Action::KillWorker(worker) => self.host.get_ref().kill_child(worker),
                Action::Suspend(slot) => self.host.get_ref().signal_slot(slot.0, Signal::STOP),
                Action::Resume(slot) => self.host.get_ref().signal_slot(slot.0, Signal::CONT),
                Action::Look(slot) => {
                    let memory = self.host.get_mut().slot_memory(now, slot.0);
                    let memory = memory.unwrap_or(Bytes::ZERO);
                    self.own.push_back(Event::Sampled(slot, memory));
                }
                // Only what a worker says is delivered, and there it is carried out.
                Action::Deliver { .. } => {}
                Action::Fail {
                    seq,
                    worker,
                    cause,
                    attempts,
                    peak,
                } => self.fail(seq, worker, (cause, attempts, peak)),
                Action::Warn(text) => (self.parts.say)(&text),
                Action::Over(over) => self.over = Some(over),
            }
        }
    }

    fn start_template(&mut self) {
        self.run = RunId(self.run.0 + 1);
        let run = self.run;
        match self.host.get_mut().open_pool() {
            Ok(fd) => {
                self.inherited = Some(fd);
                let argv = self.files.argv(&self.python, &self.parts.orders, fd);
                let host = self.host.get_mut();
                host.set_command(argv);
                let start = action::Action::Start { run, worker: None };
                host.carry_out(clock::now(), start);
            }
            Err(error) => {
                (self.parts.say)(&format!("open a socket for the template: {error}"));
                self.own.push_back(Event::TemplateFailed);
                self.own.push_back(Event::TemplateGone);
            }
        }
    }

    fn send(&mut self, worker: WorkerId, seq: Seq) {
        if let Some(task) = self.tasks.get(&seq) {
            let to = self.to.entry(worker).or_default();
            wire::write(to, wire::TASK, seq, &task.body);
        }
    }

    /// What goes to one worker goes together.
    fn send_all(&mut self) {
        for (worker, bytes) in self.to.drain() {
            self.host.get_mut().send_child(worker, &bytes);
        }
    }

    fn on_machine(&mut self, event: machine::Event) {
        let event = match event {
            machine::Event::Available(bytes) => Event::Available(bytes),
            machine::Event::Machine(found) => {
                if found.caps == CapMechanism::Rlimit && !self.warned_caps {
                    self.warned_caps = true;
                    let why = found.why_not.unwrap_or_default();
                    (self.parts.say)(&format!("caps are held by RLIMIT_DATA only: {why}"));
                }
                return;
            }
            machine::Event::WorkerEnded { worker, oom, .. } => {
                self.host.get_mut().on_nest_gone(worker, oom);
                return;
            }
            machine::Event::Started { .. } => {
                if let Some(fd) = self.inherited.take() {
                    self.host.get_mut().close_inherited(fd);
                }
                return;
            }
            machine::Event::StartFailed { error, .. } => {
                (self.parts.say)(&error);
                Event::TemplateFailed
            }
            machine::Event::CommandEnded { .. } => {
                // What it said before it ended is read first.
                self.host.get_mut().hear_template();
                while let Some(news) = self.host.get_mut().poll_news() {
                    self.on_news(news);
                }
                Event::TemplateFailed
            }
            machine::Event::RunOver { .. } => Event::TemplateGone,
            machine::Event::Signalled(signal @ (Signal::TERM | Signal::INT)) => {
                if self.tally.stopped_by.replace(signal).is_some() {
                    self.over = Some(Over::Stopped);
                    let run = self.run;
                    let kill = action::Action::KillRun { run };
                    self.host.get_mut().carry_out(clock::now(), kill);
                    return;
                }
                (self.parts.say)("finishing what is under way; once more ends it at once");
                Event::Stop
            }
            machine::Event::Failed { what, .. } => {
                (self.parts.say)(&what);
                return;
            }
            _ => return,
        };
        self.hand_in(event);
    }

    fn on_news(&mut self, news: News) {
        let event = match news {
            News::TemplateReady(threads) => {
                if threads > 0 && self.parts.orders.warm {
                    (self.parts.say)(&format!(
                        "{threads} threads were started by imports, and do not live on in workers: \
                         if these need them, use --start fresh"
                    ));
                }
                Event::TemplateReady
            }
            News::TemplateFailed(words) => {
                self.last_words = Some(words);
                return;
            }
            News::NestUp(slot) => Event::NestUp(SlotId(slot)),
            News::NestGone(slot, oom) => Event::NestGone(SlotId(slot), oom),
            News::Born(slot, worker) => {
                if let Some(setup) = &self.parts.setup {
                    let to = self.to.entry(worker).or_default();
                    wire::write(to, wire::SETUP, 0, setup);
                }
                let slot = SlotId(slot);
                Event::Born { slot, worker }
            }
            News::Said(worker) => {
                self.hear(worker);
                return;
            }
            News::Ended {
                worker,
                ended,
                oom,
                peak,
                begun,
                finished,
            } => {
                self.host.get_mut().forget_child(worker);
                self.to.remove(&worker);
                Event::WorkerEnded {
                    worker,
                    ended,
                    oom,
                    peak,
                    begun,
                    finished,
                }
            }
        };
        self.hand_in(event);
    }

    fn fail(
        &mut self,
        seq: Seq,
        worker: Option<WorkerId>,
        (fate, attempts, peak): (Fate, u32, Option<Bytes>),
    ) {
        let id = self.tasks.remove(&seq).and_then(|task| task.id);
        let cap = self.pool.limits().cap.bytes;
        let (cause, message) = frames::in_words(fate, cap, self.parts.pool.task_timeout);
        let failure = Failure {
            cause,
            attempts,
            detail: Detail::Told(message),
        };
        self.put_failure((seq, id), worker, peak, failure);
    }

    fn put_failure(
        &mut self,
        (seq, id): (Seq, Option<Box<str>>),
        worker: Option<WorkerId>,
        peak: Option<Bytes>,
        failure: Failure,
    ) {
        self.tally.failed += 1;
        self.parts.sink.put(Outcome {
            seq,
            id,
            worker,
            micros: 0,
            peak,
            verdict: Verdict::Failed(failure),
        });
    }
}

/// How an end is named in a result.
fn ended_in_words(ended: Ended) -> String {
    match ended {
        Ended::Exit(status) => format!("exit:{status}"),
        Ended::Signal(signal) => format!("signal:{signal}"),
        Ended::Unseen => "signal:KILL".to_owned(),
    }
}
