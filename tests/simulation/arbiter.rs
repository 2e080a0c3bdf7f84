//! gunicorn's arbiter, after its source (the same in versions 20 to 27).
//!
//! It keeps `target` workers: `manage_workers` forks the missing ones, and retires the oldest while
//! more are alive than wanted. Draining workers count as alive. After a fork it sleeps for up to
//! 0.1 s. Without signals it checks its workers at least once a second.

use std::{collections::VecDeque, time::Duration};

use supervise::units::{RunId, Signal, Timestamp};

/// The maximum length of `Arbiter.SIG_QUEUE`.
const QUEUE_MAX: usize = 5;

#[derive(Debug)]
pub(crate) struct Arbiter {
    pub(crate) run: RunId,
    pub(crate) pid: i32,
    /// The configured number of workers.
    config: u32,
    /// The number of workers it wants now.
    pub(crate) target: u32,
    /// Its workers, oldest first, draining ones included.
    pub(crate) children: Vec<i32>,
    signals: VecDeque<Signal>,
    /// How many SIGTTOU were lost because one was pending already.
    pub(crate) merged: u32,
    /// It sleeps after a fork, until then.
    asleep: Timestamp,
    /// Its signal handlers are installed.
    booted: bool,
    stop: Option<Stop>,
    /// When it runs its loop again. Earlier wakes are stale.
    wakes: Timestamp,
    /// fork(2) fails from now on: it then stops all workers and exits with status 255.
    pub(crate) cannot_fork: bool,
}

#[derive(Clone, Copy, Debug)]
struct Stop {
    kill_at: Timestamp,
    status: i32,
}

/// One step of its main loop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    Fork,
    Retire(i32),
    Kill(i32),
    Exit(i32),
    /// Runs the loop again then.
    Wake(Timestamp),
}

impl Arbiter {
    pub(crate) const fn new(run: RunId, pid: i32, config: u32, now: Timestamp) -> Self {
        Self {
            run,
            pid,
            config,
            target: config,
            children: Vec::new(),
            signals: VecDeque::new(),
            merged: 0,
            asleep: now,
            booted: false,
            stop: None,
            wakes: now,
            cannot_fork: false,
        }
    }

    pub(crate) const fn boot(&mut self) {
        self.booted = true;
    }

    pub(crate) const fn is_stopping(&self) -> bool {
        self.stop.is_some()
    }

    /// There is work at `at`.
    pub(crate) fn wake(&mut self, at: Timestamp) {
        self.wakes = self.wakes.min(at);
    }

    /// Queues a signal. Returns false if it has no handlers yet: the signal then kills it. A signal
    /// is lost if the same one is pending or the queue is full.
    pub(crate) fn take_signal(&mut self, signal: Signal) -> bool {
        let ends = matches!(signal, Signal::TERM | Signal::INT | Signal::QUIT);
        if self.signals.len() < QUEUE_MAX && (ends || self.signals.back() != Some(&signal)) {
            self.signals.push_back(signal);
        } else if signal == Signal::TTOU {
            self.merged += 1;
        }
        self.booted
    }

    /// A worker has exited. If it could not boot, the arbiter stops all workers.
    pub(crate) fn on_child_gone(&mut self, pid: i32, status: Option<i32>, halt_at: Timestamp) {
        self.children.retain(|child| *child != pid);
        if let (Some(status @ (3 | 4)), None) = (status, self.stop) {
            self.stop = Some(Stop {
                kill_at: halt_at,
                status,
            });
            self.signals.clear();
            self.signals.push_back(Signal::TERM);
        }
    }

    /// One turn of its loop: the steps it takes now, in order.
    pub(crate) fn turn(&mut self, now: Timestamp, graceful: Duration, naps: Duration) -> Vec<Step> {
        if now < self.wakes {
            return Vec::new();
        }
        let steps = self.steps(now, graceful, naps);
        let wakes = steps.iter().filter_map(|step| match step {
            Step::Wake(at) => Some(*at),
            _ => None,
        });
        self.wakes = wakes.min().unwrap_or(now);
        steps
    }

    fn steps(&mut self, now: Timestamp, graceful: Duration, naps: Duration) -> Vec<Step> {
        if now < self.asleep {
            return vec![Step::Wake(self.asleep)];
        }
        let mut steps = Vec::new();
        while let Some(signal) = self.signals.pop_front() {
            self.on_signal(now, signal, graceful, &mut steps);
            if signal == Signal::HUP && self.stop.is_none() {
                // The new workers are its children before `manage_workers` runs again.
                steps.push(Step::Wake(now.later(Duration::from_millis(1))));
                return steps;
            }
        }
        if let Some(stop) = self.stop {
            if self.children.is_empty() {
                steps.push(Step::Exit(stop.status));
            } else if now >= stop.kill_at {
                steps.extend(self.children.iter().map(|child| Step::Kill(*child)));
            }
            steps.push(Step::Wake(now.later(Duration::from_millis(100))));
            return steps;
        }
        let live = u32::try_from(self.children.len()).unwrap_or(u32::MAX);
        if live < self.target && self.cannot_fork {
            self.give_up(now, graceful, &mut steps);
            steps.push(Step::Wake(now.later(Duration::from_millis(100))));
            return steps;
        }
        steps.extend(self.manage(now, naps));
        steps
    }

    /// What gunicorn does on an "Unhandled exception in main loop".
    fn give_up(&mut self, now: Timestamp, graceful: Duration, steps: &mut Vec<Step>) {
        self.stop = Some(Stop {
            kill_at: now.later(graceful),
            status: 255,
        });
        steps.extend(self.children.iter().map(|child| Step::Retire(*child)));
    }

    fn on_signal(
        &mut self,
        now: Timestamp,
        signal: Signal,
        graceful: Duration,
        steps: &mut Vec<Step>,
    ) {
        match signal {
            Signal::TTIN => self.target += 1,
            Signal::TTOU => self.target = self.target.saturating_sub(1).max(1),
            Signal::HUP if self.stop.is_none() => {
                self.target = self.config;
                if self.cannot_fork {
                    self.give_up(now, graceful, steps);
                    return;
                }
                steps.extend((0..self.config).map(|_| Step::Fork));
            }
            Signal::TERM | Signal::INT | Signal::QUIT => {
                let quick = signal != Signal::TERM;
                let stop = self.stop.get_or_insert(Stop {
                    kill_at: now.later(graceful),
                    status: 0,
                });
                if quick {
                    stop.kill_at = now;
                }
                steps.extend(self.children.iter().map(|child| Step::Retire(*child)));
            }
            _ => {}
        }
    }

    /// `manage_workers`.
    fn manage(&mut self, now: Timestamp, naps: Duration) -> Vec<Step> {
        let live = u32::try_from(self.children.len()).unwrap_or(u32::MAX);
        let tick = Step::Wake(now.later(Duration::from_secs(1)));
        if live < self.target {
            self.asleep = now.later(naps);
            return vec![Step::Fork, Step::Wake(self.asleep)];
        }
        let too_many = usize::try_from(live - self.target).unwrap_or(0);
        let oldest = self.children.iter().take(too_many);
        oldest
            .map(|child| Step::Retire(*child))
            .chain([tick])
            .collect()
    }
}
