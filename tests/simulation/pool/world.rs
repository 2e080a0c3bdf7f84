//! The simulated machine of a pool: processes that start, finish and end at random.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use supervise::{
    supervisor::{
        action::About,
        input::{AgentAnswer, Ended, Oom},
        pool::{
            Pool,
            input::{Action, How, Input, Over, Seq, SlotId, TemplateEnd, WorkerEnd},
            spec::PoolSpec,
        },
        spec::{Limit, MemorySpec},
    },
    units::{Bytes, Signal, Size, Timestamp, WorkerId},
};

use super::{
    checkers::{Tamper, Turn, Watch},
    moments::{MOMENTS, Moment},
};
use crate::chance::Chance;

/// A run with more turns than this counts as hung.
const TURNS: u64 = 200_000;

/// The template has ended.
const ENDED: Input = Input::TemplateFailed(TemplateEnd::Died(Ended::Signal(Signal::KILL), Oom::No));

#[derive(Debug)]
struct Process {
    slot: SlotId,
    born: bool,
    ready: bool,
    quits: bool,
    tasks: VecDeque<Seq>,
    /// It may begin no further task.
    halted: bool,
    /// It is running the first of its tasks.
    is_busy: bool,
    /// After its tasks it makes this report.
    report: Option<About>,
}

/// A simulated machine. Faults are random in each step.
#[derive(Debug)]
pub(super) struct World {
    pub(super) chance: Chance,
    now: Timestamp,
    pool: Pool,
    workers: BTreeMap<WorkerId, Process>,
    fork_servers: BTreeMap<SlotId, bool>,
    template: bool,
    /// The number of templates so far.
    pub(super) templates: u64,
    /// The next inputs of the pool.
    pending: VecDeque<Input>,
    /// How many of a worker's steps, out of a thousand, kill it.
    pub(super) deadly: u64,
    /// The probability that the template ends in a turn.
    pub(super) fragile: f64,
    /// The probability that an operator wants a worker replaced in a turn.
    impatient: f64,
    /// The turn in which the pool is stopped, and how.
    pub(super) stop_at: Option<(u64, Input)>,
    is_stopped: bool,
    /// Tasks that have begun and get no result, because the pool was stopped.
    pub(super) abandoned: BTreeSet<Seq>,
    /// Tasks that have begun, and have not been sent again since.
    pub(super) begun: BTreeSet<Seq>,
    /// Every task whose number is a multiple of this always exceeds the cap. 0: none.
    pub(super) oom_every: u64,
    /// The state of such a task when the cap is exceeded.
    oom_at: Moment,
    pub(super) tasks: u64,
    pub(super) given: u64,
    pub(super) results: BTreeMap<Seq, String>,
    pub(super) over: Option<Over>,
    pub(super) watch: Watch,
    /// Changes what the checkers see.
    pub(super) tamper: Option<Tamper>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self::with(seed, "400M")
    }

    pub(super) fn with(seed: u64, budget: &str) -> Self {
        let mut chance = Chance::new(seed);
        let size = |text: &str| text.parse::<Size>().map_or(Limit::Auto, Limit::At);
        let spec = PoolSpec {
            workers: chance.small(1, 5),
            max_tasks: chance.yes(0.5).then(|| chance.between(1, 40)),
            max_age: chance.yes(0.2).then(|| chance.millis(5, 500)),
            memory: MemorySpec {
                budget: size(budget),
                cap: size("100M"),
                ..MemorySpec::plain()
            },
            task_timeout: chance.yes(0.3).then(|| chance.millis(20, 200)),
            retries: chance.small(0, 3),
            oom_retries: chance.small(0, 3),
            batch: chance.yes(0.3).then(|| chance.small(1, 64)),
            stop_on_error: false,
            name: "etl".to_owned(),
            function: None,
            history: 10,
            reports: true,
            time_box: Duration::from_secs(2),
        };
        let deadly = chance.pick(&[0, 1, 20, 150]);
        let oom_every = chance.pick(&[0, 7, 3]);
        let oom_at = chance.pick(&MOMENTS);
        let tasks = chance.between(0, 300);
        let has_operator = chance.yes(0.3);
        let pool = Pool::new(spec);
        Self {
            chance,
            now: Timestamp::default(),
            pool,
            workers: BTreeMap::new(),
            fork_servers: BTreeMap::new(),
            template: false,
            templates: 0,
            pending: VecDeque::new(),
            deadly,
            fragile: if deadly > 1 { 0.0005 } else { 0.0 },
            impatient: if has_operator { 0.002 } else { 0.0 },
            stop_at: None,
            is_stopped: false,
            abandoned: BTreeSet::new(),
            begun: BTreeSet::new(),
            oom_every,
            oom_at,
            tasks,
            given: 0,
            results: BTreeMap::new(),
            over: None,
            watch: Watch::default(),
            tamper: None,
        }
    }

    fn result(&mut self, seq: Seq, word: &str) {
        let before = self.results.insert(seq, word.to_owned());
        assert_eq!(before, None, "task {seq} has a second result: {word}");
        assert!(
            !self.abandoned.contains(&seq),
            "task {seq} was abandoned: {word}"
        );
    }

    fn hand_in(&mut self, input: Input) {
        self.pool.handle_input(self.now, input.clone());
        let mut turn = Turn {
            input,
            actions: std::iter::from_fn(|| self.pool.poll_action()).collect(),
            events: std::iter::from_fn(|| self.pool.poll_event()).collect(),
            snapshot: None,
        };
        if !turn.events.is_empty() {
            turn.snapshot = Some(self.pool.snapshot(self.now));
        }
        if let Some(tamper) = self.tamper {
            tamper(&mut turn);
        }
        self.watch.take(&turn);
        for action in turn.actions {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::StartTemplate => {
                self.template = true;
                self.templates += 1;
                let unfit = self.templates == 1 && self.chance.yes(0.1);
                self.pending.push_back(if unfit {
                    Input::TemplateUnfit
                } else {
                    Input::TemplateReady
                });
            }
            // Its exit handlers may hang.
            Action::QuitTemplate if self.chance.yes(0.1) => {}
            Action::QuitTemplate => self.pending.push_back(ENDED),
            Action::EndTemplate => self.end_template(),
            // The end of the template is pending.
            Action::StartForkServer(..) if !self.template => {}
            Action::StartForkServer(slot, _) if self.deadly > 1 && self.chance.yes(0.1) => {
                self.pending.push_back(Input::ForkRefused(slot, None));
            }
            Action::StartForkServer(slot, _) => {
                self.fork_servers.insert(slot, true);
                self.pending.push_back(Input::ForkServerUp(slot));
            }
            Action::Fork(slot, worker) => self.fork(slot, worker),
            Action::Send(worker, seq) => self.send(worker, seq),
            Action::Quit(worker) => {
                if let Some(process) = self.workers.get_mut(&worker) {
                    process.quits = true;
                }
            }
            Action::Report { about, .. } => {
                let process = self.workers.get_mut(&about.worker);
                process
                    .into_iter()
                    .for_each(|it| it.report = Some(about.clone()));
            }
            Action::ForgetReport(worker) => {
                self.workers.entry(worker).and_modify(|it| it.report = None);
            }
            Action::Halt(worker) => {
                self.workers.entry(worker).and_modify(|it| it.halted = true);
            }
            Action::Abandon(seq) => {
                let is_new = self.abandoned.insert(seq) && !self.results.contains_key(&seq);
                assert!(self.is_stopped && is_new, "task {seq} was abandoned");
            }
            Action::KillSlot(slot) => {
                if self.chance.yes(0.1) {
                    // The ends of its workers are not reported before that of their fork server.
                    self.workers.retain(|_, process| process.slot != slot);
                }
                self.end_fork_server(slot, Oom::No);
            }
            Action::KillWorker(worker) => self.end(worker, Ended::Signal(Signal::KILL), Oom::No),
            Action::SampleSlot(slot) => {
                let memory = Bytes::mib(self.chance.between(10, 160));
                self.pending.push_back(Input::Sampled(slot, memory));
            }
            Action::Deliver { seq, .. } => self.result(seq, "delivered"),
            Action::Fail { seq, cause, .. } => self.result(seq, &format!("{cause:?}")),
            Action::Over(over) => self.over = Some(over),
            Action::Budget(_)
            | Action::Suspend(_)
            | Action::Resume(_)
            | Action::WorkerDiedAtStart(..)
            | Action::TemplateRestarts(..) => {}
        }
    }

    fn send(&mut self, worker: WorkerId, seq: Seq) {
        assert!(!self.is_stopped, "task {seq} was sent after the stop");
        self.begun.remove(&seq);
        let slot = self.workers.get(&worker).map(|process| process.slot);
        let mut beside = self.workers.values().filter(|it| Some(it.slot) == slot);
        let reports = beside.any(|process| process.report.is_some());
        assert!(!reports, "{worker} was sent a task during a report");
        if let Some(process) = self.workers.get_mut(&worker) {
            assert!(
                process.ready && !process.quits,
                "{worker} does not take tasks"
            );
            process.tasks.push_back(seq);
        }
    }

    fn fork(&mut self, slot: SlotId, worker: WorkerId) {
        if !self.fork_servers.contains_key(&slot) {
            let is_its_end =
                |input: &Input| matches!(input, Input::ForkServerGone(it, _) if *it == slot);
            assert!(
                self.pending.iter().any(is_its_end),
                "a fork without a fork server"
            );
            return;
        }
        if self.deadly > 1 && self.chance.yes(0.1) {
            let worker = Some(worker);
            self.pending.push_back(Input::ForkRefused(slot, worker));
            return;
        }
        let process = Process {
            slot,
            born: false,
            ready: false,
            quits: false,
            tasks: VecDeque::new(),
            halted: false,
            is_busy: false,
            report: None,
        };
        self.workers.insert(worker, process);
    }

    /// A worker ends: it may have finished some of its tasks, whose results are lost with it.
    fn end(&mut self, worker: WorkerId, ended: Ended, oom: Oom) {
        let Some(process) = self.workers.remove(&worker) else {
            return;
        };
        let lost = self.chance.between(0, 3);
        let mut tasks = process.tasks.iter();
        let finished = (0..lost).filter_map(|_| tasks.next()).last().copied();
        let next = tasks.next().copied();
        let moment = self.chance.pick(&MOMENTS);
        self.begun.extend(moment.of(next).0);
        let input = worker_ended(worker, (ended, oom), finished, moment, next);
        self.pending.push_back(input);
    }

    fn end_fork_server(&mut self, slot: SlotId, oom: Oom) {
        let its: Vec<_> = self
            .workers
            .iter()
            .filter(|(_, process)| process.slot == slot)
            .map(|(worker, _)| *worker)
            .collect();
        for worker in its {
            self.end(worker, Ended::Signal(Signal::KILL), oom);
        }
        if self.fork_servers.remove(&slot).is_some() {
            self.pending.push_back(Input::ForkServerGone(slot, oom));
        }
    }

    fn end_template(&mut self) {
        let slots: Vec<_> = self.fork_servers.keys().copied().collect();
        for slot in slots {
            self.end_fork_server(slot, Oom::No);
        }
        if std::mem::take(&mut self.template) {
            self.pending.push_back(Input::TemplateGone);
        }
    }

    /// One step of one worker.
    fn step(&mut self, worker: WorkerId) {
        let roll = self.chance.between(0, 1000);
        let Some(process) = self.workers.get_mut(&worker) else {
            return;
        };
        if roll < self.deadly {
            let oom = self.chance.pick(&[Oom::No, Oom::No, Oom::Cap, Oom::Budget]);
            return self.end(worker, Ended::Signal(Signal::KILL), oom);
        }
        if !process.born {
            process.born = true;
            return self.hand_in(Input::Forked { worker, pid: 7 });
        }
        if !process.ready && self.deadly > 1 && self.chance.yes(0.05) {
            // Its initializer raises.
            self.hand_in(Input::InitializerFailed(worker));
            return self.end(worker, Ended::Exit(1), Oom::No);
        }
        if !process.ready {
            process.ready = true;
            let base = Bytes::mib(10);
            return self.hand_in(Input::Ready { worker, base });
        }
        let Some(&seq) = process.tasks.front() else {
            if let Some(about) = process.report.take() {
                return self.report(&about);
            }
            if process.quits {
                self.end(worker, Ended::Exit(0), Oom::No);
            }
            return;
        };
        if process.halted && !process.is_busy {
            process.tasks.pop_front();
            return self.hand_in(Input::NotBegun { worker, seq });
        }
        let begins_late = self.is_stopped && !process.is_busy;
        assert!(!begins_late, "task {seq} began after the stop");
        if !process.is_busy && self.chance.yes(0.5) {
            process.is_busy = true;
            return;
        }
        process.is_busy = false;
        if self.oom_every > 0 && seq % self.oom_every == 0 {
            assert!(self.fork_servers.contains_key(&process.slot));
            self.workers.remove(&worker);
            let met_its_cap = (Ended::Signal(Signal::KILL), Oom::Cap);
            self.begun.extend(self.oom_at.of(Some(seq)).0);
            let input = worker_ended(worker, met_its_cap, None, self.oom_at, Some(seq));
            return self.hand_in(input);
        }
        process.tasks.pop_front();
        self.begun.insert(seq);
        let how = self
            .chance
            .pick(&[How::Returned, How::Returned, How::Raised]);
        let micros = self.chance.small(1, 3000);
        self.hand_in(Input::Ended {
            worker,
            seq,
            how,
            micros,
            peak: Bytes::mib(20),
        });
    }

    fn report(&mut self, about: &About) {
        let summary = "python".to_owned();
        let answer = if self.chance.yes(0.9) {
            AgentAnswer::Reported {
                report: about.report,
                cause: about.cause,
                summary,
            }
        } else {
            AgentAnswer::Failed(summary)
        };
        let worker = about.worker;
        self.hand_in(Input::Reported { worker, answer });
    }

    fn give(&mut self) {
        let wants = self.pool.wants() as u64;
        for _ in 0..wants.min(self.tasks - self.given) {
            self.given += 1;
            let (seq, key) = (self.given, self.chance.small(0, 3));
            self.hand_in(Input::TaskArrived { seq, key });
        }
        if self.given == self.tasks {
            self.hand_in(Input::SourceEnded);
        }
    }

    pub(super) fn play(&mut self) {
        self.hand_in(Input::Available(Bytes::mib(1000)));
        for turn in 0..TURNS {
            if let Some((_, stop)) = self.stop_at.take_if(|(at, _)| *at == turn) {
                let at_once = stop == Input::StopAtOnce;
                self.is_stopped = true;
                self.hand_in(stop);
                let are_left = at_once && !self.workers.is_empty();
                assert!(!are_left, "workers are left: {self:#?}");
            }
            if self.over.is_some() {
                return;
            }
            self.now = self
                .now
                .later(Duration::from_micros(self.chance.between(1, 4000)));
            if self.pool.poll_deadline().is_some_and(|at| at <= self.now) {
                self.hand_in(Input::Deadline);
            }
            self.give();
            if let Some(input) = self.pending.pop_front() {
                self.hand_in(input);
            }
            let workers: Vec<_> = self.workers.keys().copied().collect();
            if !workers.is_empty() {
                let worker = self.chance.pick(&workers);
                self.step(worker);
            }
            if !workers.is_empty() && self.chance.yes(self.impatient) {
                let worker = self.chance.pick(&workers);
                let wants = self.chance.pick(&[Input::Recycle, Input::Report]);
                self.hand_in(wants(worker));
            }
            if self.template && self.chance.yes(self.fragile) {
                self.pending.push_back(ENDED);
            }
            if self.deadly > 0 && self.chance.yes(self.fragile) {
                // Its keeper was killed with all its processes. The exit status is unknown.
                self.end_template();
            }
        }
        fail_hung(self);
    }
}

/// The end of a worker that has finished one task and is at `moment` with the next.
fn worker_ended(
    worker: WorkerId,
    (ended, oom): (Ended, Oom),
    finished: Option<Seq>,
    moment: Moment,
    next: Option<Seq>,
) -> Input {
    let (begun, receiving) = moment.of(next);
    Input::WorkerEnded(WorkerEnd {
        worker,
        ended,
        oom,
        peak: Some(Bytes::mib(100)),
        begun: begun.or(finished).unwrap_or(0),
        finished: finished.unwrap_or(0),
        receiving: receiving.unwrap_or(0),
    })
}

#[expect(clippy::panic, reason = "a run that hangs fails the test")]
fn fail_hung(world: &World) {
    panic!(
        "it hangs with {} of {} results: {world:#?}",
        world.results.len(),
        world.tasks
    );
}
