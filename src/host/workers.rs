//! What is done to one worker: held, looked at, limited, signalled, let go.

use std::os::fd::AsRawFd;

use nix::sys::epoll::EpollFlags;

use super::{
    Host,
    cgroup::Group,
    hear::Source,
    looker::Job,
    rlimit,
    tracked::{Tracked, gone_is_fine},
};
use crate::{
    supervisor::{
        action::Look,
        event::{CapMechanism, Effect, Event},
    },
    units::{Bytes, Signal, Timestamp, WorkerId},
};

impl Host {
    pub(super) fn track(&mut self, worker: WorkerId, tracked: Tracked) {
        let watched = if tracked.is_command {
            Ok(0)
        } else {
            self.watch(&tracked.process, Source::Worker(worker))
        };
        let oom = tracked.group.oom_fd().map(|fd| fd.as_raw_fd());
        // Its count is read when somebody has ended, not when it wakes us.
        let flags = tracked.group.interest() | EpollFlags::EPOLLET;
        let watched = watched.and_then(|_| match oom {
            Some(fd) => self.watch_for(fd, Source::Oom(worker), flags).map(drop),
            None => Ok(()),
        });
        self.workers.insert(worker, tracked);
        if let Err(error) = watched {
            self.fail(
                format!("watch {worker}: {error}"),
                Some(worker),
                Effect::Other,
            );
        }
    }

    /// Lets go of a worker; its group is removed when it is empty.
    pub(super) fn untrack(&mut self, worker: WorkerId) -> Option<Tracked> {
        self.forget_waiting(worker);
        let mut tracked = self.workers.remove(&worker)?;
        let its = [
            Source::Worker(worker),
            Source::Wire(worker),
            Source::Oom(worker),
        ];
        self.sources.retain(|_, source| !its.contains(source));
        let group = std::mem::replace(&mut tracked.group, Group::nowhere(""));
        self.gone.push(group);
        self.upkeep.soon();
        Some(tracked)
    }

    /// Moves a helper that was taken for a worker to the server's group, with its children.
    pub(super) fn give_to_server(&mut self, worker: WorkerId, pid: i32) {
        self.untrack(worker);
        let mut pids = vec![pid];
        pids.extend(self.proc.descendants(pid));
        let Some(server) = &mut self.server_group else {
            return;
        };
        let moved = pids.into_iter().try_for_each(|pid| {
            let added = server.add(pid);
            added.or_else(|error| if error.is_gone() { Ok(()) } else { Err(error) })
        });
        if let Err(error) = moved {
            self.fail(error.to_string(), None, Effect::Cap);
        }
    }

    pub(super) fn look(&mut self, now: Timestamp, worker: WorkerId, how: Look) {
        let Some(tracked) = self.workers.get_mut(&worker) else {
            return;
        };
        match how {
            Look::Cheap => {
                let measure = self.spec.memory.measure;
                if let Some(sample) = tracked.look(&self.proc, now, measure) {
                    self.events.push_back(Event::Sampled { worker, sample });
                }
            }
            Look::Exact { within } => {
                let pids = tracked.pids(&self.proc, now).to_vec();
                let charged = tracked.charged_anon();
                self.looker.ask(Job {
                    worker,
                    pids,
                    within,
                    charged,
                });
            }
        }
    }

    pub(super) fn cap(&mut self, worker: WorkerId, cap: Option<Bytes>) {
        let Some(tracked) = self.workers.get_mut(&worker) else {
            return;
        };
        if self.groups.caps() == CapMechanism::Rlimit || !tracked.group.holds_processes() {
            self.rail(worker, cap);
            return;
        }
        match tracked.group.set_cap(cap, self.swap) {
            Ok(Some(limit)) if Some(limit) != cap => {
                self.events.push_back(Event::CapHigher { worker, limit });
            }
            Err(error) if !error.is_gone() => {
                let pid = tracked.process.pid();
                self.fail_cap(worker, pid, error.to_string());
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// A cap could not be written.
    ///
    /// RACE: a worker that ends before its limits are written needs none, and no event is reported.
    pub(super) fn fail_cap(&mut self, worker: WorkerId, pid: i32, what: String) {
        if !self.proc.is_ending(pid) {
            self.fail(what, Some(worker), Effect::Cap);
        }
    }

    /// Where no group holds a cap, `RLIMIT_DATA` does, for each process by itself. So it is on a
    /// machine without groups, and for a worker whose group could not be made.
    pub(super) fn rail(&mut self, worker: WorkerId, cap: Option<Bytes>) {
        let Some(tracked) = self.workers.get(&worker) else {
            return;
        };
        if self.groups.caps() != CapMechanism::Rlimit && tracked.group.holds_processes() {
            return;
        }
        let pid = tracked.process.pid();
        if let Err(error) = rlimit::set_rail(&self.proc, pid, cap)
            && !error.is_gone()
        {
            self.fail_cap(worker, pid, error.to_string());
        }
    }

    pub(super) fn budget(&mut self, budget: Option<Bytes>) {
        self.budget = budget;
        if self.groups.trial().budget
            && let Err(error) = self.groups.set_budget(budget)
        {
            self.fail(error.to_string(), None, Effect::Budget);
        }
    }

    pub(super) fn arm_wire(&mut self, worker: WorkerId, room: Bytes) {
        if !self.files.has_room(&self.epoll.0) && self.workers.contains_key(&worker) {
            let what = format!("set the trip wire of {worker}: too many open files");
            return self.fail(what, Some(worker), Effect::Wire);
        }
        let Some(tracked) = self.workers.get_mut(&worker) else {
            return;
        };
        self.sources
            .retain(|_, source| *source != Source::Wire(worker));
        let armed = tracked.group.arm(room);
        let fd = tracked.group.wire_fd().map(|fd| fd.as_raw_fd());
        let flags = tracked.group.interest();
        let result = match (armed, fd) {
            (Ok(()), Some(fd)) => self
                .watch_for(fd, Source::Wire(worker), flags)
                .map(drop)
                .map_err(|error| error.to_string()),
            (Err(error), _) if !error.is_gone() => Err(error.to_string()),
            (Ok(()) | Err(_), _) => Ok(()),
        };
        if let Err(what) = result {
            self.fail(what, Some(worker), Effect::Wire);
        }
    }

    pub(super) fn signal_worker(&mut self, worker: WorkerId, signal: Signal) {
        let sent = match self.workers.get(&worker) {
            Some(tracked) => tracked.process.signal(signal),
            None => match self.waiting_process(worker) {
                Some(process) => process.signal(signal),
                None => return,
            },
        };
        if let Err(error) = sent.or_else(gone_is_fine) {
            self.fail(
                format!("send {signal} to {worker}: {error}"),
                Some(worker),
                Effect::Signal,
            );
        }
    }

    pub(super) fn kill_worker(&mut self, now: Timestamp, worker: WorkerId) {
        let Some(tracked) = self.workers.get_mut(&worker) else {
            if let Some(process) = self.waiting_process(worker) {
                let group = self.groups.leaf(&worker.to_string());
                // A group includes its children; without one, the worker is killed alone.
                let _ = group.map(|group| group.kill());
                let _ = process.signal(Signal::KILL);
            }
            return;
        };
        if let Err(error) = tracked.kill(&self.proc, now) {
            self.fail(
                format!("kill {worker}: {error}"),
                Some(worker),
                Effect::Signal,
            );
        }
    }
}
