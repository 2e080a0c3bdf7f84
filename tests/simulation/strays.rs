//! Processes on the simulated machine that outlive their worker.

use std::time::Duration;

use supervise::{
    supervisor::input::{Ended, Input, Leftover, Oom},
    units::{Bytes, Signal, Timestamp, WorkerId},
};

use crate::{
    process::Process,
    world::{Happening, World},
};

/// A process that outlives its worker.
#[derive(Clone, Debug)]
pub(crate) struct Stray {
    /// The worker that started it. `None`: it is in no group, so the worker is not known.
    worker: Option<WorkerId>,
    pid: i32,
    memory: Bytes,
    /// It uses the CPU until then and is idle afterwards.
    idle_from: Timestamp,
    ignores_term: bool,
}

impl World {
    pub(crate) fn kill_worker(&mut self, worker: WorkerId) {
        if let Some(pid) = self.names.get(&worker).copied() {
            self.end(pid, Ended::Signal(Signal::KILL), Oom::No);
        }
    }

    /// A worker ends and leaves a process behind.
    pub(crate) fn add_stray(&mut self, process: &Process) {
        let works = self.chance.millis(0, 30_000);
        let stray = Stray {
            worker: process.worker.filter(|_| process.grouped),
            pid: self.next_pid(),
            memory: Bytes(1).scaled(process.helper),
            idle_from: self.now.later(works),
            ignores_term: self.chance.yes(0.2),
        };
        if self.strays.is_empty() {
            let soon = self.chance.millis(1, 1000);
            self.after(soon, Happening::Leftovers);
        }
        self.strays.push(stray);
    }

    /// Gives the decider the list of all strays, every second while there are any.
    pub(crate) fn deliver_leftovers(&mut self) {
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
        self.deliver(Duration::ZERO, Input::LeftBehind(found));
        if !self.strays.is_empty() {
            self.after(Duration::from_secs(1), Happening::Leftovers);
        }
    }

    pub(crate) fn end_leftover(&mut self, pid: i32, signal: Signal) {
        self.strays
            .retain(|stray| stray.pid != pid || (stray.ignores_term && signal == Signal::TERM));
        self.check_over();
    }
}
