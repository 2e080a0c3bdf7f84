//! A task that has no result yet, with the number of its attempts.

use super::input::Seq;

/// A task that was put back this often runs only while no other task runs.
const SOLITARY: u32 = 2;

/// A task that has no result yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Ticket {
    seq: Seq,
    key: u32,
    /// How often it failed: it raised, or its worker ended.
    failed: u32,
    /// How often its worker reached its cap.
    ooms: u32,
    /// How often an attempt was lost without the task's fault: its result was lost with its worker,
    /// or the worker was killed for the budget.
    lost: u32,
    /// How often its worker ended before the task was received or begun.
    unbegun: u32,
}

/// How far a task had come when its worker ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum TaskProgress {
    /// The task had begun.
    Begun,
    /// The task was received, completely or in part.
    Received,
    /// The task was the next one to receive.
    Next,
}

impl Ticket {
    pub(super) const fn new(seq: Seq, key: u32) -> Self {
        Self {
            seq,
            key,
            failed: 0,
            ooms: 0,
            lost: 0,
            unbegun: 0,
        }
    }

    pub(super) const fn seq(&self) -> Seq {
        self.seq
    }

    pub(super) const fn key(&self) -> u32 {
        self.key
    }

    /// An attempt ended with its result, or the task ended its worker. Returns the number of such
    /// attempts.
    pub(super) const fn on_failed(&mut self) -> u32 {
        self.failed = self.failed.saturating_add(1);
        self.failed
    }

    /// Its worker reached its cap. Returns the number of such attempts.
    pub(super) const fn on_oom(&mut self) -> u32 {
        self.ooms = self.ooms.saturating_add(1);
        self.ooms
    }

    /// The task is put back to run again, because the lost attempt, which came this far, was not
    /// its fault. Returns how often this has happened.
    pub(super) const fn put_back(&mut self, progress: TaskProgress) -> u32 {
        match progress {
            TaskProgress::Begun | TaskProgress::Received => {
                self.lost = self.lost.saturating_add(1);
            }
            // A new worker may reach the cap while the memory of the earlier worker is being freed.
            TaskProgress::Next => self.unbegun = self.unbegun.saturating_add(1),
        }
        self.put_backs()
    }

    /// Whether it runs only while no other task runs.
    pub(super) const fn is_solitary(&self) -> bool {
        self.put_backs() >= SOLITARY
    }

    /// How often it was put back.
    const fn put_backs(&self) -> u32 {
        self.lost.saturating_add(self.unbegun)
    }

    /// How often it was begun or received, including the attempt that has just ended.
    pub(super) const fn attempts(&self) -> u32 {
        self.failed
            .saturating_add(self.ooms)
            .saturating_add(self.lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_was_put_back_twice_runs_alone() {
        for progress in [
            TaskProgress::Begun,
            TaskProgress::Received,
            TaskProgress::Next,
        ] {
            let mut ticket = Ticket::new(1, 0);
            assert_eq!(ticket.put_back(progress), 1);
            assert!(!ticket.is_solitary());
            assert_eq!(ticket.put_back(TaskProgress::Next), 2);
            assert!(ticket.is_solitary());
        }
    }

    #[test]
    fn an_attempt_counts_only_if_the_task_was_begun_or_received() {
        let mut ticket = Ticket::new(1, 0);
        ticket.put_back(TaskProgress::Next);
        assert_eq!(ticket.attempts(), 0);
        ticket.put_back(TaskProgress::Received);
        ticket.on_oom();
        ticket.on_failed();
        assert_eq!(ticket.attempts(), 3);
    }
}
