//! gunicorn's arbiter, as its source has it (20 to 27 agree in this).
//!
//! It keeps `target` workers: `manage_workers` forks what is missing, and retires its oldest while
//! more are alive than wanted, those that already drain included. A fork is followed by up to
//! 0.1 s of sleep. Between signals it looks at least once a second.

use std::{collections::VecDeque, time::Duration};

use supervise::units::{RunId, Signal, Timestamp};

/// `Arbiter.SIG_QUEUE` holds no more.
const QUEUE_MAX: usize = 5;

#[derive(Debug)]
pub(crate) struct Arbiter {
    pub(crate) run: RunId,
    pub(crate) pid: i32,
    /// What its configuration says, and what it wants now.
    config: u32,
    pub(crate) target: u32,
    /// Oldest first; with those that drain.
    pub(crate) children: Vec<i32>,
    signals: VecDeque<Signal>,
    /// So many for one worker fewer came while one was pending, and were lost in it.
    pub(crate) merged: u32,
    /// Asleep after a fork: nothing is done before then.
    asleep: Timestamp,
    /// Handlers are installed.
    booted: bool,
    stop: Option<Stop>,
    /// When it looks again. Wakes before that are stale.
    wakes: Timestamp,
    /// fork(2) fails from now on. It takes that badly: it stops all, and exits with 255.
    pub(crate) cannot_fork: bool,
}

#[derive(Clone, Copy, Debug)]
struct Stop {
    kill_at: Timestamp,
    status: i32,
}

/// What it does next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Deed {
    Fork,
    Retire(i32),
    Kill(i32),
    Exit(i32),
    /// Looks again then.
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

    /// Something is there to be done at `at`.
    pub(crate) fn wake(&mut self, at: Timestamp) {
        self.wakes = self.wakes.min(at);
    }

    /// False: it has no handler yet and dies of the signal. A signal that is pending already, or
    /// for which there is no place, is lost.
    pub(crate) fn take_signal(&mut self, signal: Signal) -> bool {
        let ends = matches!(signal, Signal::TERM | Signal::INT | Signal::QUIT);
        if self.signals.len() < QUEUE_MAX && (ends || self.signals.back() != Some(&signal)) {
            self.signals.push_back(signal);
        } else if signal == Signal::TTOU {
            self.merged += 1;
        }
        self.booted
    }

    /// A worker that could not boot takes all along.
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

    /// One turn of its loop: all that it does now, in order.
    pub(crate) fn turn(&mut self, now: Timestamp, graceful: Duration, naps: Duration) -> Vec<Deed> {
        if now < self.wakes {
            return Vec::new();
        }
        let deeds = self.deeds(now, graceful, naps);
        let wakes = deeds.iter().filter_map(|deed| match deed {
            Deed::Wake(at) => Some(*at),
            _ => None,
        });
        self.wakes = wakes.min().unwrap_or(now);
        deeds
    }

    fn deeds(&mut self, now: Timestamp, graceful: Duration, naps: Duration) -> Vec<Deed> {
        if now < self.asleep {
            return vec![Deed::Wake(self.asleep)];
        }
        let mut deeds = Vec::new();
        while let Some(signal) = self.signals.pop_front() {
            self.on_signal(now, signal, graceful, &mut deeds);
            if signal == Signal::HUP && self.stop.is_none() {
                // The new ones are its children before it manages again.
                deeds.push(Deed::Wake(now.later(Duration::from_millis(1))));
                return deeds;
            }
        }
        if let Some(stop) = self.stop {
            if self.children.is_empty() {
                deeds.push(Deed::Exit(stop.status));
            } else if now >= stop.kill_at {
                deeds.extend(self.children.iter().map(|child| Deed::Kill(*child)));
            }
            deeds.push(Deed::Wake(now.later(Duration::from_millis(100))));
            return deeds;
        }
        let live = u32::try_from(self.children.len()).unwrap_or(u32::MAX);
        if live < self.target && self.cannot_fork {
            self.give_up(now, graceful, &mut deeds);
            deeds.push(Deed::Wake(now.later(Duration::from_millis(100))));
            return deeds;
        }
        deeds.extend(self.manage(now, naps));
        deeds
    }

    /// "Unhandled exception in main loop".
    fn give_up(&mut self, now: Timestamp, graceful: Duration, deeds: &mut Vec<Deed>) {
        self.stop = Some(Stop {
            kill_at: now.later(graceful),
            status: 255,
        });
        deeds.extend(self.children.iter().map(|child| Deed::Retire(*child)));
    }

    fn on_signal(
        &mut self,
        now: Timestamp,
        signal: Signal,
        graceful: Duration,
        deeds: &mut Vec<Deed>,
    ) {
        match signal {
            Signal::TTIN => self.target += 1,
            Signal::TTOU => self.target = self.target.saturating_sub(1).max(1),
            Signal::HUP if self.stop.is_none() => {
                self.target = self.config;
                if self.cannot_fork {
                    self.give_up(now, graceful, deeds);
                    return;
                }
                deeds.extend((0..self.config).map(|_| Deed::Fork));
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
                deeds.extend(self.children.iter().map(|child| Deed::Retire(*child)));
            }
            _ => {}
        }
    }

    /// `manage_workers`.
    fn manage(&mut self, now: Timestamp, naps: Duration) -> Vec<Deed> {
        let live = u32::try_from(self.children.len()).unwrap_or(u32::MAX);
        let tick = Deed::Wake(now.later(Duration::from_secs(1)));
        if live < self.target {
            self.asleep = now.later(naps);
            return vec![Deed::Fork, Deed::Wake(self.asleep)];
        }
        let too_many = usize::try_from(live - self.target).unwrap_or(0);
        let oldest = self.children.iter().take(too_many);
        oldest
            .map(|child| Deed::Retire(*child))
            .chain([tick])
            .collect()
    }
}
