//! Processes in the pretend machine that outlive their worker.

use std::time::Duration;

use supervise::{
    supervisor::event::{Ended, Event, Leftover, Oom},
    units::{Bytes, Signal, Timestamp, WorkerId},
};

use crate::{
    process::Process,
    world::{Happening, World},
};

/// Such a process.
#[derive(Clone, Debug)]
pub(crate) struct Stray {
    /// The worker that started it; `None`: it is in no group, so that this is not known.
    worker: Option<WorkerId>,
    pid: i32,
    memory: Bytes,
    /// It uses the CPU until then.
    idle_from: Timestamp,
    /// It ignores SIGTERM.
    deaf: bool,
}

impl World {
    pub(crate) fn kill_worker(&mut self, worker: WorkerId) {
        if let Some(pid) = self.names.get(&worker).copied() {
            self.end(pid, Ended::Signal(Signal::KILL), Oom::No);
        }
    }

    /// A worker ends and leaves a process behind.
    pub(crate) fn leave(&mut self, process: &Process) {
        let works = self.chance.millis(0, 30_000);
        let stray = Stray {
            worker: process.worker.filter(|_| process.grouped),
            pid: self.next_pid(),
            memory: Bytes(1).scaled(process.helper),
            idle_from: self.now.later(works),
            deaf: self.chance.yes(0.2),
        };
        if self.strays.is_empty() {
            let soon = self.chance.millis(1, 1000);
            self.after(soon, Happening::Leftovers);
        }
        self.strays.push(stray);
    }

    /// Tells the decider of all strays, again and again while there are any.
    pub(crate) fn tell_leftovers(&mut self) {
        let now = self.now;
        let found = self.strays.iter().filter_map(|stray| {
            Some(Leftover {
                worker: stray.worker?,
                pid: stray.pid,
                started: 1,
                tree: stray.pid,
                command: "stray".to_owned(),
                memory: stray.memory,
                idle: now.since(stray.idle_from),
            })
        });
        let found = found.collect();
        self.tell(Duration::ZERO, Event::LeftBehind(found));
        if !self.strays.is_empty() {
            self.after(Duration::from_secs(1), Happening::Leftovers);
        }
    }

    pub(crate) fn end_leftover(&mut self, pid: i32, signal: Signal) {
        self.strays
            .retain(|stray| stray.pid != pid || (stray.deaf && signal == Signal::TERM));
        self.mind_over();
    }
}
