//! The pool's decider against pretend workers, by seed: whatever dies, each task has one result.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use supervise::{
    supervisor::{
        event::{Ended, Oom},
        pool::{
            Pool,
            event::{Action, Event, How, Over, Seq, SlotId, TemplateEnd},
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

/// The template has ended, by a signal or by itself.
const ENDED: Event = Event::TemplateFailed(TemplateEnd::Died(Ended::Signal(Signal::KILL), Oom::No));

#[derive(Debug)]
struct Hand {
    slot: SlotId,
    ready: bool,
    quits: bool,
    tasks: VecDeque<Seq>,
    /// It begins no other.
    halted: bool,
    /// It is at the first of its tasks.
    at_one: bool,
}

/// A pretend machine. Faults are drawn for each step.
#[derive(Debug)]
struct World {
    chance: Chance,
    now: Timestamp,
    pool: Pool,
    hands: BTreeMap<WorkerId, Hand>,
    nests: BTreeMap<SlotId, bool>,
    template: bool,
    /// So many were started.
    templates: u64,
    news: VecDeque<Event>,
    /// How many of a thousand steps of a worker end it.
    deadly: u64,
    /// How probable it is that the template ends in a turn.
    fragile: f64,
    /// In this turn it is told to end at once.
    stop_at: Option<u64>,
    /// In this turn it is told to begin nothing else.
    halt_at: Option<u64>,
    is_halted: bool,
    /// Tasks that were begun, and have no result as the pool was told to stop.
    abandoned: BTreeSet<Seq>,
    /// Tasks whose memory is always too much.
    fat: u64,
    /// When their worker meets its cap.
    fat_at: Moment,
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
        let fat = chance.pick(&[0, 7, 3]);
        let fat_at = chance.pick(&MOMENTS);
        let tasks = chance.between(0, 300);
        let pool = Pool::new(spec);
        Self {
            chance,
            now: Timestamp::default(),
            pool,
            hands: BTreeMap::new(),
            nests: BTreeMap::new(),
            template: false,
            templates: 0,
            news: VecDeque::new(),
            deadly,
            fragile: if deadly > 1 { 0.0005 } else { 0.0 },
            stop_at: None,
            halt_at: None,
            is_halted: false,
            abandoned: BTreeSet::new(),
            fat,
            fat_at,
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
            "{seq} was abandoned: {word}"
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
                self.news.push_back(if unfit {
                    Event::TemplateUnfit
                } else {
                    Event::TemplateReady
                });
            }
            // Its exit handlers may hang.
            Action::QuitTemplate if self.chance.yes(0.1) => {}
            Action::QuitTemplate => self.news.push_back(ENDED),
            Action::EndTemplate => self.end_template(),
            // Its end is on its way to whoever asks.
            Action::RaiseNest(..) if !self.template => {}
            Action::RaiseNest(slot, _) if self.deadly > 1 && self.chance.yes(0.1) => {
                self.news.push_back(Event::ForkRefused(slot, None));
            }
            Action::RaiseNest(slot, _) => {
                self.nests.insert(slot, true);
                self.news.push_back(Event::NestUp(slot));
            }
            Action::Fork(slot, worker) => self.fork(slot, worker),
            Action::Send(worker, seq) => {
                assert!(!self.is_halted, "task {seq} is sent after the stop");
                if let Some(hand) = self.hands.get_mut(&worker) {
                    assert!(hand.ready && !hand.quits, "{worker} does not take tasks");
                    hand.tasks.push_back(seq);
                }
            }
            Action::Quit(worker) => {
                if let Some(hand) = self.hands.get_mut(&worker) {
                    hand.quits = true;
                }
            }
            Action::Halt(worker) => {
                self.hands.entry(worker).and_modify(|it| it.halted = true);
            }
            Action::Abandon(seq) => {
                let is_new = self.abandoned.insert(seq) && !self.results.contains_key(&seq);
                assert!(self.is_halted && is_new, "task {seq} is abandoned");
            }
            Action::KillSlot(slot) => self.end_nest(slot, Oom::No),
            Action::KillWorker(worker) => self.end(worker, Ended::Signal(Signal::KILL), Oom::No),
            Action::Look(slot) => {
                let memory = Bytes::mib(self.chance.between(10, 160));
                self.news.push_back(Event::Sampled(slot, memory));
            }
            Action::Deliver { seq, .. } => self.result(seq, "delivered"),
            Action::Fail { seq, cause, .. } => self.result(seq, &format!("{cause:?}")),
            Action::Over(over) => self.over = Some(over),
            Action::Budget(_)
            | Action::Suspend(_)
            | Action::Resume(_)
            | Action::Warn(_)
            | Action::StartDied(..)
            | Action::TemplateAnew(..) => {}
        }
    }

    fn fork(&mut self, slot: SlotId, worker: WorkerId) {
        if !self.nests.contains_key(&slot) {
            let is_its_end = |news: &Event| matches!(news, Event::NestGone(it, _) if *it == slot);
            assert!(self.news.iter().any(is_its_end), "a fork without a nest");
            return;
        }
        if self.deadly > 1 && self.chance.yes(0.1) {
            let worker = Some(worker);
            self.news.push_back(Event::ForkRefused(slot, worker));
            return;
        }
        let hand = Hand {
            slot,
            ready: false,
            quits: false,
            tasks: VecDeque::new(),
            halted: false,
            at_one: false,
        };
        self.hands.insert(worker, hand);
    }

    /// What it had begun is the first of its tasks, unless it had none.
    fn end(&mut self, worker: WorkerId, ended: Ended, oom: Oom) {
        let Some(hand) = self.hands.remove(&worker) else {
            return;
        };
        let lost = self.chance.between(0, 3);
        let mut tasks = hand.tasks.iter();
        // Some it had finished, and their results went down with it.
        let finished = (0..lost).filter_map(|_| tasks.next()).last().copied();
        let next = tasks.next().copied();
        let (begun, receiving) = self.chance.pick(&MOMENTS).of(next);
        let begun = begun.or(finished);
        self.news.push_back(Event::WorkerEnded {
            worker,
            ended,
            oom,
            peak: Some(Bytes::mib(100)),
            begun: begun.unwrap_or(0),
            finished: finished.unwrap_or(0),
            receiving: receiving.unwrap_or(0),
        });
    }

    fn end_nest(&mut self, slot: SlotId, oom: Oom) {
        let its: Vec<_> = self
            .hands
            .iter()
            .filter(|(_, hand)| hand.slot == slot)
            .map(|(worker, _)| *worker)
            .collect();
        for worker in its {
            self.end(worker, Ended::Signal(Signal::KILL), oom);
        }
        if self.nests.remove(&slot).is_some() {
            self.news.push_back(Event::NestGone(slot, oom));
        }
    }

    fn end_template(&mut self) {
        let slots: Vec<_> = self.nests.keys().copied().collect();
        for slot in slots {
            self.end_nest(slot, Oom::No);
        }
        if std::mem::take(&mut self.template) {
            self.news.push_back(Event::TemplateGone);
        }
    }

    /// One worker does one thing.
    fn step(&mut self, worker: WorkerId) {
        let roll = self.chance.between(0, 1000);
        let Some(hand) = self.hands.get_mut(&worker) else {
            return;
        };
        if roll < self.deadly {
            let oom = self.chance.pick(&[Oom::No, Oom::No, Oom::Cap, Oom::Budget]);
            return self.end(worker, Ended::Signal(Signal::KILL), oom);
        }
        if !hand.ready {
            hand.ready = true;
            let base = Bytes::mib(10);
            return self.hand_in(Event::Ready { worker, base });
        }
        let Some(&seq) = hand.tasks.front() else {
            if hand.quits {
                self.end(worker, Ended::Exit(0), Oom::No);
            }
            return;
        };
        if hand.halted && !hand.at_one {
            hand.tasks.pop_front();
            return self.hand_in(Event::NotBegun { worker, seq });
        }
        let begins_late = self.is_halted && !hand.at_one;
        assert!(!begins_late, "task {seq} is begun after the stop");
        if !hand.at_one && self.chance.yes(0.5) {
            hand.at_one = true;
            return;
        }
        hand.at_one = false;
        if self.fat > 0 && seq % self.fat == 0 {
            let slot = hand.slot;
            hand.tasks.truncate(1);
            let (begun, receiving) = self.fat_at.of(Some(seq));
            let (begun, receiving) = (begun.unwrap_or(0), receiving.unwrap_or(0));
            let event = Event::WorkerEnded {
                worker,
                ended: Ended::Signal(Signal::KILL),
                oom: Oom::Cap,
                peak: Some(Bytes::mib(100)),
                begun,
                finished: 0,
                receiving,
            };
            self.hands.remove(&worker);
            assert!(self.nests.contains_key(&slot));
            return self.hand_in(event);
        }
        hand.tasks.pop_front();
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
            if self.halt_at == Some(turn) {
                self.is_halted = true;
                self.hand_in(Event::Stop);
            }
            if self.stop_at == Some(turn) {
                self.is_halted = true;
                self.hand_in(Event::StopAtOnce);
                assert!(self.hands.is_empty(), "workers are left: {self:#?}");
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
            if let Some(event) = self.news.pop_front() {
                self.hand_in(event);
            }
            let hands: Vec<_> = self.hands.keys().copied().collect();
            if !hands.is_empty() {
                let worker = self.chance.pick(&hands);
                self.step(worker);
            }
            if self.template && self.chance.yes(self.fragile) {
                self.news.push_back(ENDED);
            }
            if self.deadly > 0 && self.chance.yes(self.fragile) {
                // Its keeper was killed, and all went with it: nobody says how it ended.
                self.end_template();
            }
        }
        panic_with(self);
    }
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
fn what_ends_with_the_template_is_blamed_on_nobody() {
    let mut deaths = 0;
    for seed in 0..500 {
        // Nobody is put back for the budget, which counts as well.
        let mut world = World::with(seed, "64G");
        (world.deadly, world.fat, world.fragile) = (0, 0, 0.002);
        world.play();
        deaths += world.templates.saturating_sub(1);
        let blamed = world.results.values().find(|it| it.starts_with("Died"));
        assert_eq!(blamed, None, "seed {seed}");
        assert_eq!(world.results.len() as u64, world.tasks, "seed {seed}");
    }
    assert!(deaths > 100, "{deaths} templates have ended");
}

#[test]
fn told_to_stop_it_finishes_what_has_begun_and_begins_nothing_else() {
    let (mut stopped, mut finished, mut left) = (0, 0, 0);
    for seed in 0..500 {
        // Nobody is put back for the budget of every other one, which counts as well.
        let is_roomy = u64::is_multiple_of(seed, 2);
        let mut world = World::with(seed, if is_roomy { "64G" } else { "400M" });
        let turn = world.chance.between(0, 400);
        world.halt_at = Some(turn);
        world.play();
        if world.over != Some(Over::Stopped) {
            continue;
        }
        stopped += 1;
        finished += world.results.len();
        left += world.given - world.results.len() as u64;
        if is_roomy && world.deadly == 0 && world.fat == 0 {
            let died = world.results.values().find(|it| it.starts_with("Died"));
            assert_eq!(died, None, "seed {seed}");
        }
    }
    assert!(stopped > 200, "{stopped} were told in time");
    assert!(finished > 1000 && left > 1000, "{finished} {left}");
}

#[test]
fn told_to_end_at_once_it_does() {
    let (mut stopped, mut abandoned) = (0, 0);
    for seed in 0..500 {
        // Nobody is put back for the budget of every other one, which counts as well.
        let is_roomy = u64::is_multiple_of(seed, 2);
        let mut world = World::with(seed, if is_roomy { "64G" } else { "400M" });
        let turn = world.chance.between(0, 400);
        world.stop_at = Some(turn);
        world.play();
        stopped += u64::from(world.over == Some(Over::Stopped));
        abandoned += world.abandoned.len();
        if is_roomy && world.deadly == 0 && world.fat == 0 {
            let blamed = world.results.values().find(|it| it.starts_with("Died"));
            assert_eq!(
                blamed, None,
                "seed {seed}: what the stop has cut is no failure"
            );
        }
    }
    assert!(stopped > 200, "{stopped} were told in time");
    assert!(abandoned > 200, "{abandoned} were cut");
}
