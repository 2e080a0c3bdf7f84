//! A pool on a simulated machine, by seed: whatever dies, each task gets one result.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use supervise::{
    supervisor::{
        event::{Ended, Oom},
        pool::{
            Pool,
            event::{Action, Event, How, Over, Seq, SlotId, TemplateEnd, WorkerEnd},
            spec::PoolSpec,
        },
        spec::{Limit, MemorySpec},
    },
    units::{Bytes, Signal, Size, Timestamp, WorkerId},
};

use crate::{
    chance::Chance,
    pool_moments::{MOMENTS, Moment},
};

const SEEDS: u64 = 2_000;
/// A run that takes more turns than this hangs.
const TURNS: u64 = 200_000;

/// The template has ended.
const ENDED: Event = Event::TemplateFailed(TemplateEnd::Died(Ended::Signal(Signal::KILL), Oom::No));

#[derive(Debug)]
struct Process {
    slot: SlotId,
    ready: bool,
    quits: bool,
    tasks: VecDeque<Seq>,
    /// It may begin no further task.
    halted: bool,
    /// It is running the first of its tasks.
    is_busy: bool,
}

/// A simulated machine. Faults are random in each step.
#[derive(Debug)]
struct World {
    chance: Chance,
    now: Timestamp,
    pool: Pool,
    workers: BTreeMap<WorkerId, Process>,
    nests: BTreeMap<SlotId, bool>,
    template: bool,
    /// The number of templates so far.
    templates: u64,
    /// The next inputs of the pool.
    pending: VecDeque<Event>,
    /// How many of a thousand steps of a worker kill it.
    deadly: u64,
    /// The probability that the template ends in a turn.
    fragile: f64,
    /// The turn in which the pool is stopped, and how.
    stop_at: Option<(u64, Event)>,
    is_stopped: bool,
    /// Tasks that have begun and get no result, because the pool was stopped.
    abandoned: BTreeSet<Seq>,
    /// Tasks that have begun, and were not sent again since.
    begun: BTreeSet<Seq>,
    /// Each multiple of this number is a task that always exceeds the cap; 0: none.
    oom_every: u64,
    /// How far such a task has come when it does.
    oom_at: Moment,
    tasks: u64,
    given: u64,
    results: BTreeMap<Seq, String>,
    over: Option<Over>,
}

impl World {
    fn new(seed: u64) -> Self {
        Self::with(seed, "400M")
    }

    fn with(seed: u64, budget: &str) -> Self {
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
        };
        let deadly = chance.pick(&[0, 1, 20, 150]);
        let oom_every = chance.pick(&[0, 7, 3]);
        let oom_at = chance.pick(&MOMENTS);
        let tasks = chance.between(0, 300);
        let pool = Pool::new(spec);
        Self {
            chance,
            now: Timestamp::default(),
            pool,
            workers: BTreeMap::new(),
            nests: BTreeMap::new(),
            template: false,
            templates: 0,
            pending: VecDeque::new(),
            deadly,
            fragile: if deadly > 1 { 0.0005 } else { 0.0 },
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

    fn hand_in(&mut self, event: Event) {
        self.pool.handle_event(self.now, event);
        while let Some(action) = self.pool.poll_action() {
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
                    Event::TemplateUnfit
                } else {
                    Event::TemplateReady
                });
            }
            // Its exit handlers may hang.
            Action::QuitTemplate if self.chance.yes(0.1) => {}
            Action::QuitTemplate => self.pending.push_back(ENDED),
            Action::EndTemplate => self.end_template(),
            // The end of the template is pending.
            Action::RaiseNest(..) if !self.template => {}
            Action::RaiseNest(slot, _) if self.deadly > 1 && self.chance.yes(0.1) => {
                self.pending.push_back(Event::ForkRefused(slot, None));
            }
            Action::RaiseNest(slot, _) => {
                self.nests.insert(slot, true);
                self.pending.push_back(Event::NestUp(slot));
            }
            Action::Fork(slot, worker) => self.fork(slot, worker),
            Action::Send(worker, seq) => {
                assert!(!self.is_stopped, "task {seq} was sent after the stop");
                self.begun.remove(&seq);
                if let Some(process) = self.workers.get_mut(&worker) {
                    assert!(
                        process.ready && !process.quits,
                        "{worker} does not take tasks"
                    );
                    process.tasks.push_back(seq);
                }
            }
            Action::Quit(worker) => {
                if let Some(process) = self.workers.get_mut(&worker) {
                    process.quits = true;
                }
            }
            Action::Halt(worker) => {
                self.workers.entry(worker).and_modify(|it| it.halted = true);
            }
            Action::Abandon(seq) => {
                let is_new = self.abandoned.insert(seq) && !self.results.contains_key(&seq);
                assert!(self.is_stopped && is_new, "task {seq} was abandoned");
            }
            Action::KillSlot(slot) => self.end_nest(slot, Oom::No),
            Action::KillWorker(worker) => self.end(worker, Ended::Signal(Signal::KILL), Oom::No),
            Action::Look(slot) => {
                let memory = Bytes::mib(self.chance.between(10, 160));
                self.pending.push_back(Event::Sampled(slot, memory));
            }
            Action::Deliver { seq, .. } => self.result(seq, "delivered"),
            Action::Fail { seq, cause, .. } => self.result(seq, &format!("{cause:?}")),
            Action::Over(over) => self.over = Some(over),
            Action::Budget(_)
            | Action::Suspend(_)
            | Action::Resume(_)
            | Action::StartDied(..)
            | Action::TemplateAnew(..) => {}
        }
    }

    fn fork(&mut self, slot: SlotId, worker: WorkerId) {
        if !self.nests.contains_key(&slot) {
            let is_its_end = |event: &Event| matches!(event, Event::NestGone(it, _) if *it == slot);
            assert!(self.pending.iter().any(is_its_end), "a fork without a nest");
            return;
        }
        if self.deadly > 1 && self.chance.yes(0.1) {
            let worker = Some(worker);
            self.pending.push_back(Event::ForkRefused(slot, worker));
            return;
        }
        let process = Process {
            slot,
            ready: false,
            quits: false,
            tasks: VecDeque::new(),
            halted: false,
            is_busy: false,
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
        let event = worker_ended(worker, (ended, oom), finished, moment, next);
        self.pending.push_back(event);
    }

    fn end_nest(&mut self, slot: SlotId, oom: Oom) {
        let its: Vec<_> = self
            .workers
            .iter()
            .filter(|(_, process)| process.slot == slot)
            .map(|(worker, _)| *worker)
            .collect();
        for worker in its {
            self.end(worker, Ended::Signal(Signal::KILL), oom);
        }
        if self.nests.remove(&slot).is_some() {
            self.pending.push_back(Event::NestGone(slot, oom));
        }
    }

    fn end_template(&mut self) {
        let slots: Vec<_> = self.nests.keys().copied().collect();
        for slot in slots {
            self.end_nest(slot, Oom::No);
        }
        if std::mem::take(&mut self.template) {
            self.pending.push_back(Event::TemplateGone);
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
        if !process.ready {
            process.ready = true;
            let base = Bytes::mib(10);
            return self.hand_in(Event::Ready { worker, base });
        }
        let Some(&seq) = process.tasks.front() else {
            if process.quits {
                self.end(worker, Ended::Exit(0), Oom::No);
            }
            return;
        };
        if process.halted && !process.is_busy {
            process.tasks.pop_front();
            return self.hand_in(Event::NotBegun { worker, seq });
        }
        let begins_late = self.is_stopped && !process.is_busy;
        assert!(!begins_late, "task {seq} began after the stop");
        if !process.is_busy && self.chance.yes(0.5) {
            process.is_busy = true;
            return;
        }
        process.is_busy = false;
        if self.oom_every > 0 && seq % self.oom_every == 0 {
            assert!(self.nests.contains_key(&process.slot));
            self.workers.remove(&worker);
            let met_its_cap = (Ended::Signal(Signal::KILL), Oom::Cap);
            self.begun.extend(self.oom_at.of(Some(seq)).0);
            let event = worker_ended(worker, met_its_cap, None, self.oom_at, Some(seq));
            return self.hand_in(event);
        }
        process.tasks.pop_front();
        self.begun.insert(seq);
        let how = self
            .chance
            .pick(&[How::Returned, How::Returned, How::Raised]);
        let micros = self.chance.small(1, 3000);
        self.hand_in(Event::Ended {
            worker,
            seq,
            how,
            micros,
            peak: Bytes::mib(20),
        });
    }

    fn give(&mut self) {
        let wants = self.pool.wants() as u64;
        for _ in 0..wants.min(self.tasks - self.given) {
            self.given += 1;
            let (seq, key) = (self.given, self.chance.small(0, 3));
            self.hand_in(Event::Came { seq, key });
        }
        if self.given == self.tasks {
            self.hand_in(Event::SourceEnded);
        }
    }

    fn play(&mut self) {
        self.hand_in(Event::Available(Bytes::mib(1000)));
        for turn in 0..TURNS {
            if let Some((_, stop)) = self.stop_at.take_if(|(at, _)| *at == turn) {
                let at_once = stop == Event::StopAtOnce;
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
                self.hand_in(Event::Deadline);
            }
            self.give();
            if let Some(event) = self.pending.pop_front() {
                self.hand_in(event);
            }
            let workers: Vec<_> = self.workers.keys().copied().collect();
            if !workers.is_empty() {
                let worker = self.chance.pick(&workers);
                self.step(worker);
            }
            if self.template && self.chance.yes(self.fragile) {
                self.pending.push_back(ENDED);
            }
            if self.deadly > 0 && self.chance.yes(self.fragile) {
                // Its keeper was killed, and all processes with it. Its exit status is unknown.
                self.end_template();
            }
        }
        panic_with(self);
    }
}

/// The end of a worker that has finished one task, and had come as far as `moment` with the next.
fn worker_ended(
    worker: WorkerId,
    (ended, oom): (Ended, Oom),
    finished: Option<Seq>,
    moment: Moment,
    next: Option<Seq>,
) -> Event {
    let (begun, receiving) = moment.of(next);
    Event::WorkerEnded(WorkerEnd {
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
fn panic_with(world: &World) {
    panic!(
        "it hangs with {} of {} results: {world:#?}",
        world.results.len(),
        world.tasks
    );
}

#[test]
fn each_task_has_one_result_in_all_seeds() {
    let mut fates = BTreeSet::new();
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        world.play();
        let all: Vec<Seq> = (1..=world.given).collect();
        let have: Vec<Seq> = world.results.keys().copied().collect();
        assert_eq!(have, all, "seed {seed}: {:?}", world.over);
        if world.deadly == 0 {
            assert_eq!(world.over, Some(Over::Done), "seed {seed}");
            assert_eq!(world.given, world.tasks, "seed {seed}");
        }
        fates.extend(world.results.into_values());
    }
    // The seeds reach every way in which a task can end.
    let all = [
        "delivered",
        "Cap",
        "CapReceiving",
        "Timeout",
        "Died(Signal(Signal(9)))",
    ];
    for fate in all {
        assert!(fates.contains(fate), "{fate} is not among {fates:?}");
    }
}

#[test]
fn tasks_that_end_with_the_template_are_run_again() {
    let mut deaths = 0;
    for seed in 0..500 {
        // With this budget, no task is put back to save memory, which would count as an attempt.
        let mut world = World::with(seed, "64G");
        (world.deadly, world.oom_every, world.fragile) = (0, 0, 0.002);
        world.play();
        deaths += world.templates.saturating_sub(1);
        let blamed = world.results.values().find(|it| it.starts_with("Died"));
        assert_eq!(blamed, None, "seed {seed}");
        assert_eq!(world.results.len() as u64, world.tasks, "seed {seed}");
    }
    assert!(deaths > 100, "{deaths} templates have ended");
}

/// Runs pools that are stopped in a random turn. Returns those that had not ended before.
fn stopped(stop: &Event) -> Vec<World> {
    let mut worlds = Vec::new();
    for seed in 0..500 {
        // With this budget, no task is put back to save memory, which would count as an attempt.
        let is_roomy = u64::is_multiple_of(seed, 2);
        let mut world = World::with(seed, if is_roomy { "64G" } else { "400M" });
        let turn = world.chance.between(0, 400);
        world.stop_at = Some((turn, stop.clone()));
        world.play();
        let is_known =
            |seq: &&Seq| world.results.contains_key(seq) || world.abandoned.contains(seq);
        let forgotten = world.begun.iter().find(|seq| !is_known(seq));
        assert_eq!(
            forgotten, None,
            "seed {seed}: begun, and nothing is said of it"
        );
        if is_roomy && world.deadly == 0 && world.oom_every == 0 {
            let died = world.results.values().find(|it| it.starts_with("Died"));
            assert_eq!(died, None, "seed {seed}");
        }
        worlds.push(world);
    }
    worlds.retain(|world| world.over == Some(Over::Stopped));
    assert!(worlds.len() > 200, "{} were stopped in time", worlds.len());
    worlds
}

#[test]
fn a_pool_that_stops_finishes_running_tasks_and_begins_no_others() {
    let worlds = stopped(&Event::Stop);
    let finished: u64 = worlds.iter().map(|it| it.results.len() as u64).sum();
    let given: u64 = worlds.iter().map(|it| it.given).sum();
    let left = given - finished;
    assert!(finished > 1000 && left > 1000, "{finished} {left}");
}

#[test]
fn a_pool_that_stops_at_once_abandons_running_tasks() {
    let worlds = stopped(&Event::StopAtOnce);
    let abandoned: usize = worlds.iter().map(|it| it.abandoned.len()).sum();
    assert!(abandoned > 200, "{abandoned} were abandoned");
}
