//! The limits that the history of a service suggests (docs/suggest.md).

use serde::Serialize;

use super::{
    History, InForce,
    lives::Life,
    need::{Need, float, median},
};
use crate::supervisor::event::Suggested;
use crate::units::{Bytes, scaled};

/// The ceiling is this many times what workers need.
const CEILING: f64 = 1.25;
/// A cap is this many times the memory of a start, which no ceiling holds.
const CAP: f64 = 1.25;
/// The part of the time in which workers need no more than the need.
const MOST: f64 = 0.999;
/// Either this many workers must have ended after their warm-up, ...
const ENDED_MIN: usize = 3;
/// ... or workers must have worked for this time, and have done this many tasks.
const WATCHED_MIN_S: u64 = 600;
const TASKS_MIN: u64 = 1000;
/// A worker that is replaced after fewer tasks is replaced often.
pub const TASKS_WANTED: u64 = 1000;

/// The suggestion, and what it is based on.
#[derive(Clone, Debug, Serialize)]
pub struct Suggestion {
    /// What is needed before anything can be suggested. Empty: enough was seen.
    pub missing: Vec<String>,
    /// The limits. `None`: too little was seen.
    pub limits: Option<Limits>,
    /// What was seen.
    pub seen: Seen,
    /// The limits in force.
    pub now: InForce,
}

/// The suggested limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Limits {
    /// The ceiling. `None`: a job has none.
    pub ceiling: Option<Bytes>,
    /// The cap.
    pub cap: Bytes,
    /// Workers that fit, with room for a replacement. `None`: the command is one worker.
    pub workers: Option<u64>,
    /// The tasks that a worker does until it has grown to the ceiling. `None`: it does not grow.
    pub tasks_per_life: Option<u64>,
    /// The same in seconds, if tasks are not counted.
    pub life_s: Option<u64>,
    /// Workers may need more: some were killed for their memory.
    pub lower_bound: bool,
}

/// What was seen of the workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Seen {
    /// Workers that were seen after their warm-up.
    pub workers: usize,
    /// Those of them that have ended.
    pub ended: usize,
    /// Workers that the kernel killed for their memory.
    pub cut: usize,
    /// Time after warm-up, of all workers together.
    pub watched_s: u64,
    /// Tasks done in that time. `None`: they are not counted.
    pub tasks: Option<u64>,
    /// The memory after warm-up, of the typical worker.
    pub warm: Bytes,
    /// What a worker needs most of the time.
    pub median: Bytes,
    /// What a worker needs at most in 99.9 % of the time.
    pub most: Bytes,
    /// The highest memory of any worker, with all that it leaked.
    pub peak: Bytes,
    /// The leak in bytes per task.
    pub growth_per_task: Option<f64>,
    /// The leak in bytes per second, if tasks are not counted.
    pub growth_per_s: Option<f64>,
}

impl Suggestion {
    /// If a worker does fewer than [`TASKS_WANTED`] tasks until it is replaced at the suggested
    /// ceiling: the ceiling for that number.
    pub fn ceiling_for_longer(&self) -> Option<Bytes> {
        self.limits?
            .tasks_per_life
            .filter(|tasks| *tasks < TASKS_WANTED)?;
        let growth = self.seen.growth_per_task? * float(TASKS_WANTED);
        Some(whole(self.seen.median.plus(bytes(growth))))
    }

    /// The suggestion in one line.
    pub fn summary(&self) -> Suggested {
        let Some(limits) = self.limits else {
            let missing = self.missing.join("; ");
            return Suggested {
                text: format!("the dry run suggests no limits: too little seen. needed: {missing}"),
                ..Suggested::default()
            };
        };
        let mut text = format!("the dry run suggests {}", limits.flags());
        if let Some(ceiling) = self.ceiling_for_longer() {
            let more = format!(", or --ceiling {ceiling} for {TASKS_WANTED} requests a life");
            text.push_str(&more);
        }
        if limits.lower_bound {
            text.push_str("; workers may need more, because some were killed for their memory");
        }
        text.push_str("; `supervise suggest` shows why");
        Suggested {
            ceiling: limits.ceiling,
            cap: Some(limits.cap),
            text,
        }
    }
}

impl Limits {
    /// As options of the command line.
    pub fn flags(&self) -> String {
        match self.ceiling {
            Some(ceiling) => format!("--ceiling {ceiling} --cap {}", self.cap),
            None => format!("--cap {}", self.cap),
        }
    }
}

impl History {
    /// The limits that fit.
    pub fn suggest(&self) -> Suggestion {
        let needs: Vec<_> = self.lives.all().filter_map(Need::of).collect();
        let seen = self.seen(&needs);
        let is_job = self.limits.is_job();
        let missing = if is_job {
            self.missing_of_job()
        } else {
            missing(&seen)
        };
        let limits = missing.is_empty().then(|| {
            if is_job {
                self.limits_of_job(&seen)
            } else {
                self.limits_of_service(&seen, &needs)
            }
        });
        Suggestion {
            missing,
            limits,
            seen,
            now: self.limits.clone(),
        }
    }

    fn seen(&self, needs: &[Need]) -> Seen {
        // A job needs no warm-up: each of its runs counts.
        let counts = |life: &&Life| self.limits.is_job() || Need::of(life).is_some();
        let tasks = self.lives.all().filter_map(|life| {
            let (warm, last) = (life.warm()?, life.points().last()?);
            let done = last.tasks.saturating_sub(warm.tasks);
            life.counts_tasks().then_some(done)
        });
        let tasks = tasks.reduce(u64::saturating_add);
        let same_unit = |need: &&Need| need.counts_tasks == tasks.is_some();
        let growth = needs.iter().filter(same_unit).map(|need| need.growth);
        let growth = middle(growth);
        let warm = middle(needs.iter().map(|need| need.warm.as_f64()));
        let peaks = self.lives.all().map(Life::peak);
        Seen {
            workers: self.lives.all().filter(counts).count(),
            ended: self.lives.ended().iter().filter(counts).count(),
            cut: self.lives.all().filter(|life| life.is_cut()).count(),
            watched_s: needs.iter().map(Need::watched_s).sum(),
            tasks,
            warm: bytes(warm),
            median: quantile(needs, 0.5),
            most: quantile(needs, MOST),
            peak: peaks.max().unwrap_or_default(),
            growth_per_task: tasks.map(|_| growth),
            growth_per_s: tasks.is_none().then_some(growth),
        }
    }

    fn limits_of_service(&self, seen: &Seen, needs: &[Need]) -> Limits {
        // A kind of worker that is rare may need more than all others.
        let working_set = needs.iter().map(Need::median).max().unwrap_or_default();
        let ceiling = whole(seen.most.scaled(CEILING).max(working_set));
        let boot = self.lives.all().map(Life::boot_peak).max();
        let cap = ceiling.plus(ceiling);
        let cap = whole(cap.max(boot.unwrap_or_default().scaled(CAP)));
        let room = self.limits.budget.unwrap_or(self.limits.available);
        let cap = cap.min(room.max(ceiling));
        let fit = || {
            let room = room.minus(self.limits.server).get();
            room.checked_div(ceiling.get()).unwrap_or(0)
        };
        let life = |growth: f64| {
            let room = ceiling.minus(seen.median).as_f64();
            (growth > 0.0).then(|| scaled(1, room / growth))
        };
        Limits {
            ceiling: Some(ceiling),
            cap,
            workers: match self.limits.mode.as_str() {
                _ if self.limits.replaces_first() => Some(fit().saturating_sub(1)),
                "pool" => Some(fit()),
                _ => None,
            },
            tasks_per_life: seen.growth_per_task.and_then(life),
            life_s: seen.growth_per_s.and_then(life),
            lower_bound: seen.cut > 0,
        }
    }

    fn limits_of_job(&self, seen: &Seen) -> Limits {
        Limits {
            cap: whole(seen.peak.scaled(CAP)),
            lower_bound: seen.cut > 0,
            ..Limits::default()
        }
    }

    fn missing_of_job(&self) -> Vec<String> {
        if self.lives.ended().is_empty() {
            vec!["a run of the job that has ended".to_owned()]
        } else {
            Vec::new()
        }
    }
}

impl InForce {
    /// The ceiling.
    pub const fn ceiling(&self) -> Option<Bytes> {
        self.ceiling
    }

    /// The cap.
    pub const fn cap(&self) -> Option<Bytes> {
        self.cap
    }

    /// The number of workers.
    pub const fn workers(&self) -> usize {
        self.workers
    }

    /// The command runs once.
    pub fn is_job(&self) -> bool {
        self.mode == "job"
    }

    /// A replacement is started before a worker is stopped.
    pub fn replaces_first(&self) -> bool {
        self.mode == "server"
    }

    /// What all workers must fit into, and its name.
    pub const fn room(&self) -> (Bytes, &'static str) {
        match self.budget {
            Some(budget) => (budget, "budget"),
            None => (self.available, "available memory"),
        }
    }
}

/// What must be seen before limits can be suggested.
fn missing(seen: &Seen) -> Vec<String> {
    let long = seen.watched_s >= WATCHED_MIN_S;
    let many = seen.tasks.is_none_or(|tasks| tasks >= TASKS_MIN);
    if seen.ended >= ENDED_MIN || (long && many) {
        return Vec::new();
    }
    let mut missing = vec![format!(
        "{ENDED_MIN} workers that worked and have ended (seen: {}), or {} minutes after warm-up \
         (seen: {}s)",
        seen.ended,
        WATCHED_MIN_S / 60,
        seen.watched_s
    )];
    if let Some(tasks) = seen.tasks {
        missing.push(format!(
            "with the minutes, {TASKS_MIN} requests or tasks (seen: {tasks})"
        ));
    }
    missing
}

/// The need that is not exceeded in this part of the time.
fn quantile(needs: &[Need], part: f64) -> Bytes {
    let with_time = |need: &Need| {
        let every_s = need.every_s;
        let all = need.memory.clone().into_iter();
        all.map(move |memory| (memory, every_s))
    };
    let mut all: Vec<_> = needs.iter().flat_map(with_time).collect();
    all.sort_unstable();
    let whole: u64 = all.iter().map(|(_, seconds)| seconds).sum();
    let mut passed = 0;
    for (memory, seconds) in &all {
        passed += seconds;
        if float(passed) >= float(whole) * part {
            return *memory;
        }
    }
    Bytes::ZERO
}

fn middle(values: impl Iterator<Item = f64>) -> f64 {
    median(&mut values.collect::<Vec<_>>()).unwrap_or(0.0)
}

fn bytes(size: f64) -> Bytes {
    Bytes(scaled(1, size))
}

/// Rounded up to mebibytes, as people write limits.
fn whole(size: Bytes) -> Bytes {
    Bytes::mib(size.get().div_ceil(Bytes::mib(1).get()))
}
