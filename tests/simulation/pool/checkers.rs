//! Checks the ends, the counts and the snapshot of a pool.
//!
//! The checkers see the inputs, actions and events, and never look inside the pool.

use std::collections::{BTreeMap, BTreeSet};

use supervise::{
    supervisor::{
        cause::{Cause, Class},
        event::{End, Event, Who},
        input::{Ended, Oom},
        pool::input::{Action, Input, SlotId, WorkerEnd},
        snapshot::Snapshot,
    },
    units::{Signal, WorkerId},
};

use crate::record::by_kernel;

/// One input, and the actions and events that follow from it.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    pub(super) input: Input,
    pub(super) actions: Vec<Action>,
    pub(super) events: Vec<Event>,
    /// The snapshot after the turn, if it had events.
    pub(super) snapshot: Option<Snapshot>,
}

pub(super) type Tamper = fn(&mut Turn);

/// A broken promise: its name, and how it was broken.
pub(super) type Failure = (&'static str, String);

/// What is known of one worker.
#[derive(Clone, Debug)]
struct Seen {
    slot: SlotId,
    is_born: bool,
    drained: Option<Cause>,
    /// It has reported that it could not start.
    could_not_start: bool,
    /// The pool has killed it, alone or with its slot or template.
    killed: Option<By>,
    has_ended: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum By {
    Itself,
    Slot,
    Template,
}

/// The record of a pool, with the first broken promise.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) failure: Option<Failure>,
    workers: BTreeMap<WorkerId, Seen>,
    recycles: BTreeMap<String, u64>,
    unplanned: BTreeMap<String, u64>,
    /// The causes of all ends, for tests that count them.
    pub(super) causes: BTreeSet<String>,
    /// The kernel has killed a worker of these slots, and none of the slot has gone on since.
    killed_slots: BTreeSet<SlotId>,
    is_stopped: bool,
    done: u64,
    failed: u64,
    abandoned: u64,
    came: u64,
}

impl Watch {
    pub(super) fn take(&mut self, turn: &Turn) {
        self.take_input(&turn.input);
        self.take_events(&turn.events);
        let checked = self.check_ends(turn);
        self.take_actions(&turn.actions);
        let checked =
            checked
                .and_then(|()| self.check_over(turn))
                .and_then(|()| match &turn.snapshot {
                    Some(snapshot) => self.check_snapshot(snapshot),
                    None => Ok(()),
                });
        if let Err(failure) = checked {
            self.failure.get_or_insert(failure);
        }
    }

    fn take_input(&mut self, input: &Input) {
        match input {
            Input::Forked { worker, .. } => {
                if let Some(seen) = self.workers.get_mut(worker) {
                    seen.is_born = true;
                    self.killed_slots.remove(&seen.slot);
                }
            }
            Input::Ready { worker, .. } => self.goes_on(*worker),
            Input::InitializerFailed(worker) => {
                let seen = self.workers.get_mut(worker);
                seen.into_iter()
                    .for_each(|seen| seen.could_not_start = true);
            }
            Input::TaskArrived { .. } => self.came += 1,
            Input::Stop | Input::StopAtOnce => self.is_stopped = true,
            _ => {}
        }
    }

    fn take_events(&mut self, events: &[Event]) {
        for event in events {
            if let Event::Draining { worker, cause } = event
                && let Some(seen) = self.workers.get_mut(worker)
            {
                seen.drained = Some(*cause);
            }
        }
    }

    fn take_actions(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Fork(slot, worker) => {
                    let seen = Seen {
                        slot: *slot,
                        is_born: false,
                        drained: None,
                        could_not_start: false,
                        killed: None,
                        has_ended: false,
                    };
                    self.workers.insert(*worker, seen);
                }
                Action::Send(worker, _) => self.goes_on(*worker),
                Action::KillWorker(worker) => self.note_killed(By::Itself, |id, _| id == *worker),
                Action::KillSlot(slot) => self.note_killed(By::Slot, |_, seen| seen.slot == *slot),
                // A worker ends with its template at the latest.
                Action::QuitTemplate | Action::EndTemplate => {
                    self.note_killed(By::Template, |_, _| true);
                }
                Action::Deliver { .. } => self.done += 1,
                Action::Fail { .. } => self.failed += 1,
                Action::Abandon(_) => self.abandoned += 1,
                _ => {}
            }
        }
    }

    fn goes_on(&mut self, worker: WorkerId) {
        if let Some(seen) = self.workers.get(&worker) {
            self.killed_slots.remove(&seen.slot);
        }
    }

    fn note_killed(&mut self, by: By, is: impl Fn(WorkerId, &Seen) -> bool) {
        for (id, seen) in &mut self.workers {
            if !seen.has_ended && is(*id, seen) {
                seen.killed.get_or_insert(by);
            }
        }
    }

    /// Each worker has one `Ended` event, in the turn in which it ends, with a cause that fits.
    fn check_ends(&mut self, turn: &Turn) -> Result<(), Failure> {
        for event in &turn.events {
            let Event::Ended(end) = event else { continue };
            let Who::Worker(id) = end.who else { continue };
            let one_end = |why: &str| Err(("pool-one-end", format!("{id}: {why}")));
            let stopped = self.is_stopped;
            let is_beside = self.is_beside_another(id);
            let Some(seen) = self.workers.get_mut(&id).filter(|seen| seen.is_born) else {
                return one_end("it ended, and was never started");
            };
            if std::mem::replace(&mut seen.has_ended, true) {
                return one_end("it ended twice");
            }
            let Some((ended, oom)) = what_happened(&turn.input, id, seen.slot) else {
                return one_end("nothing ended");
            };
            if end.cause.class() == Class::Kernel {
                self.killed_slots.insert(seen.slot);
            }
            check_cause(end, seen, (ended, oom), (stopped, is_beside))
                .map_err(|why| ("pool-one-class", format!("{id} by {}: {why}", end.cause)))?;
            let counts = if end.cause.is_recycle() {
                &mut self.recycles
            } else {
                &mut self.unplanned
            };
            *counts.entry(end.cause.to_string()).or_default() += 1;
            self.causes.insert(end.cause.to_string());
        }
        match &turn.input {
            Input::WorkerEnded(WorkerEnd { worker, .. }) => self.check_has_ended(*worker),
            _ => Ok(()),
        }
    }

    /// Whether another worker shares its slot, or the kernel has just killed one there.
    fn is_beside_another(&self, id: WorkerId) -> bool {
        let slot = self.workers.get(&id).map(|seen| seen.slot);
        let mut others = self.workers.iter().filter(|(other, _)| **other != id);
        slot.is_some_and(|slot| self.killed_slots.contains(&slot))
            || others.any(|(_, seen)| Some(seen.slot) == slot && !seen.has_ended)
    }

    fn check_has_ended(&self, worker: WorkerId) -> Result<(), Failure> {
        let is_missing = |seen: &Seen| seen.is_born && !seen.has_ended;
        if self.workers.get(&worker).is_some_and(is_missing) {
            return Err((
                "pool-one-end",
                format!("{worker}: it ended without an event"),
            ));
        }
        Ok(())
    }

    fn check_over(&self, turn: &Turn) -> Result<(), Failure> {
        let is_over = turn.actions.iter().any(|it| matches!(it, Action::Over(_)));
        if is_over {
            for worker in self.workers.keys() {
                self.check_has_ended(*worker)?;
            }
        }
        Ok(())
    }

    fn check_snapshot(&self, snapshot: &Snapshot) -> Result<(), Failure> {
        let (recycles, unplanned) = (&snapshot.recycles, &snapshot.unplanned);
        if (recycles, unplanned) != (&self.recycles, &self.unplanned) {
            let counted = (&self.recycles, &self.unplanned);
            let why = format!("{recycles:?} {unplanned:?}, counted {counted:?}");
            return Err(("pool-counts", why));
        }
        let is_alive = |seen: &Seen| seen.is_born && !seen.has_ended;
        let alive = self.workers.iter().filter(|(_, seen)| is_alive(seen));
        let alive: Vec<_> = alive
            .map(|(id, seen)| (*id, seen.drained.is_some()))
            .collect();
        let shown: Vec<_> = snapshot
            .workers
            .iter()
            .map(|view| (view.id, view.state == "draining"))
            .collect();
        if alive != shown {
            return Err(("pool-alive", format!("shown {shown:?}, alive {alive:?}")));
        }
        self.check_tasks(snapshot)
    }

    fn check_tasks(&self, snapshot: &Snapshot) -> Result<(), Failure> {
        let tasks = snapshot.pool.clone().unwrap_or_default();
        let ended = tasks.done + tasks.failed;
        let all = ended + tasks.waiting + tasks.running;
        // A pool that stops drops its waiting tasks.
        let fits = if self.is_stopped {
            all <= self.came
        } else {
            all == self.came
        };
        if fits && (ended, tasks.abandoned) == (self.done + self.failed, self.abandoned) {
            return Ok(());
        }
        let seen = (self.came, self.done, self.failed, self.abandoned);
        Err(("pool-tasks", format!("shown {tasks:?}, counted {seen:?}")))
    }
}

/// How this input ends this worker.
fn what_happened(input: &Input, worker: WorkerId, slot: SlotId) -> Option<(Ended, Oom)> {
    match input {
        Input::WorkerEnded(end) if end.worker == worker => Some((end.ended, end.oom)),
        Input::ForkServerGone(its, oom) if *its == slot => Some((Ended::Unseen, *oom)),
        Input::ForkRefused(its, None) if *its == slot => Some((Ended::Unseen, Oom::No)),
        Input::TemplateGone => Some((Ended::Unseen, Oom::No)),
        _ => None,
    }
}

/// Checks that the cause says what the world or the pool did.
fn check_cause(
    end: &End,
    seen: &Seen,
    (ended, oom): (Ended, Oom),
    (is_stopped, is_beside): (bool, bool),
) -> Result<(), &'static str> {
    let cause = end.cause;
    if let Some(kernel) = by_kernel(oom) {
        // It may have been killed with another worker of its slot.
        let other = seen.drained.unwrap_or(Cause::Stop);
        let with_another = is_beside && (cause == other || cause == Cause::Stop);
        return holds(cause == kernel || with_another, "the kernel killed it");
    }
    let vanished = matches!(ended, Ended::Signal(Signal::KILL) | Ended::Unseen);
    let by_us = seen.killed.is_some() && vanished;
    let left = by_us || matches!(ended, Ended::Exit(0) | Ended::Unseen);
    match cause.class() {
        Class::Kernel => holds(false, "the kernel did not kill it"),
        Class::Own if cause == Cause::Hung => holds(
            by_us && seen.killed == Some(By::Slot),
            "it was not killed for it",
        ),
        Class::Own if cause == Cause::StartFailed => holds(seen.could_not_start, "it has started"),
        Class::Own => {
            holds(!by_us, "the pool killed it")?;
            holds(cause == Cause::of(ended, oom), "it ended in another way")
        }
        Class::Planned if cause == Cause::Budget => holds(
            by_us && seen.killed == Some(By::Slot),
            "it was not killed for it",
        ),
        Class::Operator if cause == Cause::Stop => {
            let asked = is_stopped || by_us || seen.drained == Some(Cause::Stop);
            holds(asked && left, "nothing was stopping")
        }
        Class::Planned | Class::Operator => {
            holds(seen.drained == Some(cause), "it did not drain for it")?;
            holds(left, "it ended by itself")
        }
    }
}

fn holds(is_so: bool, why: &'static str) -> Result<(), &'static str> {
    if is_so { Ok(()) } else { Err(why) }
}
