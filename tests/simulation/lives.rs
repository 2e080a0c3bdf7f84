//! The lives of workers on the simulated machine: forked, adopted, ready, stopping, ended.

use std::time::Duration;

use supervise::{
    supervisor::{
        action::SampleKind,
        input::{CapMechanism, Effect, Ended, Input, Oom},
        spec::{Kind, ReadyWhen},
    },
    units::{Bytes, Signal, Timestamp, WorkerId},
};

use crate::{
    characters::Plan,
    process::{Asker, Phase, Process, bytes},
    world::{Command, Fate, Happening, MASTER, World},
};

impl World {
    /// Starts a new worker process.
    pub(crate) fn spawn(&mut self, pid: i32) {
        let plan = self.scenario.program.plan(&mut self.chance, self.calm);
        let boot = plan.boot;
        self.processes
            .insert(pid, Process::new(pid, self.now, plan));
        self.after(boot, Happening::Ready(pid));
    }

    /// Gives a process its worker id and its group.
    pub(crate) fn take(&mut self, worker: WorkerId, pid: i32, cap: Option<Bytes>) {
        self.names.insert(worker, pid);
        let fails = self.yes(self.scenario.faults.cap);
        let group = self.scenario.machine.caps != CapMechanism::Rlimit;
        let (now, single) = (self.now, matches!(self.scenario.spec.kind, Kind::Single));
        if let Some(process) = self.processes.get_mut(&pid) {
            process.worker = Some(worker);
            process.elsewhere = if single { 0.0 } else { process.private(now) };
            process.grouped = group && !fails;
            process.cap = cap.filter(|_| !fails).map(Bytes::as_f64);
        }
        if fails {
            self.fail("move a worker", Some(worker), Effect::Cap);
        }
    }

    pub(crate) fn adopt(&mut self, worker: WorkerId, pid: i32, cap: Option<Bytes>) {
        self.take(worker, pid, cap);
        let Some(process) = self.processes.get(&pid) else {
            // It has ended before it was adopted, or it is a helper process of the server.
            let helper = pid < 0;
            let input = if helper {
                Input::NoWorker { worker }
            } else {
                Input::WorkerEnded {
                    worker,
                    ended: Ended::Unseen,
                    oom: Oom::No,
                    peak: None,
                }
            };
            let wait = if helper {
                self.chance.millis(500, 3000)
            } else {
                self.chance.micros(10, 2000)
            };
            self.deliver(wait, input);
            return;
        };
        if process.phase == Phase::Serving {
            let wait = self.chance.millis(0, 50);
            self.deliver(wait, Input::WorkerReady { worker });
        }
    }

    pub(crate) fn signal_worker(&mut self, worker: WorkerId, signal: Signal) {
        if self.yes(self.scenario.faults.signal) {
            self.fail("signal a worker", Some(worker), Effect::Signal);
        } else if let Some(pid) = self.names.get(&worker).copied()
            && signal == Signal::TERM
        {
            self.request_stop(pid, Asker::Decider);
        }
    }

    pub(crate) fn request_stop(&mut self, pid: i32, asker: Asker) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if process.asked == Asker::None {
            process.asked = asker;
        }
        let (Some(drain), true) = (process.plan.drain, process.phase != Phase::Leaving) else {
            return;
        };
        // A worker that boots finishes its boot first.
        let at = now.later(drain).max(process.boots_until);
        let goes = process.plan.goes;
        if process.phase == Phase::Serving {
            process.phase = Phase::Leaving;
        }
        self.at(at, Happening::Exit(pid, goes));
    }

    pub(crate) fn on_ready(&mut self, pid: i32) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let plan = process.plan.clone();
        let boots = process.phase == Phase::Booting;
        if boots && (self.cannot_start() || plan.fails_to_boot()) {
            self.on_failed_boot(pid, &plan);
            return;
        }
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        self.failed_boots = 0;
        process.grow(
            now,
            if process.asked == Asker::None {
                plan.rate
            } else {
                0.0
            },
        );
        if process.phase == Phase::Booting {
            process.phase = Phase::Serving;
        }
        let worker = process.worker;
        if let Some((wait, ended)) = plan.crash {
            self.after(wait, Happening::Exit(pid, ended));
        }
        if let Some((wait, ..)) = plan.spike {
            self.after(wait, Happening::Spike(pid));
        }
        if let Some((wait, _)) = plan.helper {
            self.after(wait, Happening::Helper(pid));
        }
        let wait = self.chance.millis(0, 50);
        let has_probe = !matches!(
            self.scenario.spec.ready.when,
            ReadyWhen::Auto | ReadyWhen::Delay(_)
        );
        let run = match &self.command {
            Some(Command::Server(arbiter)) => arbiter.run,
            Some(Command::Single { run, .. }) => *run,
            None => return,
        };
        if has_probe {
            self.deliver(wait * 2, Input::ServiceReady { run });
        }
        let server = matches!(self.command, Some(Command::Server(_)));
        if let Some(worker) = worker.filter(|_| server) {
            self.deliver(wait, Input::WorkerReady { worker });
        }
    }

    /// A server's worker exits with a status that stops its master. If it has the agent and another
    /// worker serves, it waits and exits with another status (`boot_failures.py`).
    fn on_failed_boot(&mut self, pid: i32, plan: &Plan) {
        let server = matches!(self.command, Some(Command::Server(_)));
        let serves = |one: &Process| one.phase != Phase::Booting;
        let others = self.processes.values().any(serves);
        let now = self.now;
        if let Some(process) = self.processes.get_mut(&pid) {
            process.grow(now, 0.0);
            process.failed = true;
        }
        self.failed_boots += 1;
        let (wait, status) = if server && others && self.scenario.guarded {
            let doubled = 2_u64.saturating_pow(self.failed_boots.saturating_sub(1));
            (Duration::from_secs(doubled.min(24)), 1)
        } else if server {
            let status = match plan.crash {
                Some((_, Ended::Exit(status))) if plan.fails_to_boot() => status,
                _ => 3,
            };
            (Duration::ZERO, status)
        } else {
            (Duration::ZERO, 1)
        };
        self.after(wait, Happening::Exit(pid, Ended::Exit(status)));
    }

    pub(crate) fn on_spike(&mut self, pid: i32) {
        let gigabyte = 1e9;
        let Some(process) = self.processes.get(&pid) else {
            return;
        };
        let (Some((every, size, lasts)), rate) = (process.plan.spike, process.rate()) else {
            return;
        };
        if self.calm {
            return;
        }
        let takes = Duration::from_secs_f64(size.as_f64() / gigabyte);
        self.after(Duration::ZERO, Happening::Rate(pid, gigabyte));
        self.after(takes, Happening::Rate(pid, rate));
        self.after(takes + lasts, Happening::GiveBack(pid, size.as_f64()));
        self.after(takes + lasts + every, Happening::Spike(pid));
    }

    pub(crate) fn change(&mut self, pid: i32, how: impl FnOnce(&mut Process, Timestamp)) {
        let now = self.now;
        if let Some(process) = self.processes.get_mut(&pid) {
            how(process, now);
        }
    }

    pub(crate) fn answer(&mut self, worker: WorkerId, how: SampleKind) {
        if self.yes(self.scenario.faults.look) {
            self.fail("look", Some(worker), Effect::Sample);
            return;
        }
        let now = self.now;
        if let Some(process) = self.process_of(worker) {
            let sample = process.sample(now, how != SampleKind::Cheap);
            let took = sample.exact.map_or(Duration::ZERO, |exact| exact.took);
            self.deliver(took, Input::Sampled { worker, sample });
        }
        if self.chance.yes(0.05) {
            self.deliver(Duration::ZERO, Input::ServerSampled { private: MASTER });
        }
    }

    /// A process has ended. Its parent reaps it.
    pub(crate) fn end(&mut self, pid: i32, ended: Ended, oom: Oom) {
        let Some(process) = self.processes.remove(&pid) else {
            return;
        };
        let now = self.now;
        if process.helper > 0.0 && ended != Ended::Signal(Signal::KILL) {
            self.add_stray(&process);
        }
        let halt_at = now.later(self.scenario.graceful_timeout);
        let reaps = self.chance.micros(50, 5000);
        let mut command_first = None;
        match &mut self.command {
            Some(Command::Server(arbiter)) => {
                let status = match ended {
                    Ended::Exit(status) => Some(status),
                    Ended::Signal(_) | Ended::Unseen => None,
                };
                arbiter.on_child_gone(pid, status, halt_at);
                let master = arbiter.pid;
                arbiter.wake(now.later(reaps));
                self.after(reaps, Happening::MasterWakes(master));
            }
            Some(Command::Single { run, pid: own }) if *own == pid => {
                let run = *run;
                self.command = None;
                if self.scenario.command_first {
                    self.command_ended(run, ended);
                } else {
                    command_first = Some(run);
                }
            }
            Some(Command::Single { .. }) | None => {}
        }
        self.deliver_end(&process, ended, oom);
        if let Some(run) = command_first {
            self.command_ended(run, ended);
        }
        self.check_over();
    }

    pub(crate) fn deliver_end(&mut self, process: &Process, ended: Ended, oom: Oom) {
        let Some(worker) = process.worker else { return };
        let single = matches!(self.scenario.spec.kind, Kind::Single);
        let fate = Fate {
            asked: process.asked,
            grew: process.plan.rate > 0.0
                || process.private(self.now).max(process.peak) > process.plan.base.as_f64() * 1.05,
            copied: process.ends_at_cap(self.now) && !process.is_at_cap(self.now),
            growth: process.growth(),
        };
        self.fates.insert(worker, fate);
        let unseen = self.scenario.faults.unseen && !single;
        let peak = bytes(process.peak.max(process.private(self.now)));
        let input = Input::WorkerEnded {
            worker,
            ended: if unseen { Ended::Unseen } else { ended },
            oom,
            peak: process.grouped.then_some(peak),
        };
        let wait = self.chance.micros(50, 3000);
        let mut at = self.now.later(wait);
        if single {
            at = at.max(self.delivered_at);
        }
        self.delivered_at = self.delivered_at.max(at);
        self.at(at, Happening::Deliver(input));
    }
}
