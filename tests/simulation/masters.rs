//! The life of the command on the simulated machine: a gunicorn master and its workers, or a single
//! program.

use supervise::{
    supervisor::{
        input::{Effect, Ended, Input, Oom},
        spec::RestartWhen,
    },
    units::{Bytes, RunId, Signal, WorkerId},
};

use crate::{
    arbiter::{Arbiter, Step},
    process::Asker,
    world::{Command, Happening, World},
};

impl World {
    pub(crate) fn start(&mut self, run: RunId, worker: Option<(WorkerId, Option<Bytes>)>) {
        let wait = self.chance.millis(1, 30);
        if self.yes(self.scenario.faults.start) {
            let errno = self.chance.pick(&[11, 12, 12, 11, 2, 13]);
            let error = "fork".to_owned();
            self.deliver(wait, Input::StartFailed { run, errno, error });
            self.deliver(wait * 2, Input::RunOver { run });
            return;
        }
        self.strays.clear();
        let pid = self.next_pid();
        self.deliver(wait, Input::Started { run, pid });
        self.seen_at = self.now.later(wait);
        self.delivered_at = self.seen_at;
        let Some((worker, cap)) = worker else {
            let config = self.scenario.workers;
            self.wanted = config;
            self.command = Some(Command::Server(Arbiter::new(run, pid, config, self.now)));
            let boot = wait + self.chance.millis(50, 800);
            self.after(boot, Happening::MasterUp(pid));
            return;
        };
        self.command = Some(Command::Single { run, pid });
        self.spawn(pid);
        self.take(worker, pid, cap);
        if self.scenario.spec.restart.when == RestartWhen::Never {
            let length = self.scenario.job_length;
            let status = self.chance.pick(&[0, 0, 1, 42]);
            self.after(length, Happening::Exit(pid, Ended::Exit(status)));
        }
    }

    pub(crate) fn fork(&mut self) {
        let pid = self.next_pid();
        self.spawn(pid);
        let Some(Command::Server(arbiter)) = &mut self.command else {
            return;
        };
        arbiter.children.push(pid);
        self.announce(pid);
    }

    /// The decider sees a new worker within 0.1 s, oldest first.
    pub(crate) fn announce(&mut self, pid: i32) {
        let Some(Command::Server(arbiter)) = &self.command else {
            return;
        };
        let run = arbiter.run;
        let wait = self.chance.millis(0, 100);
        self.seen_at = self.seen_at.max(self.now.later(wait));
        self.at(
            self.seen_at,
            Happening::Deliver(Input::WorkerSeen { run, pid }),
        );
    }

    pub(crate) fn signal_command(&mut self, signal: Signal, by_operator: Option<Signal>) {
        if self.yes(self.scenario.faults.signal) {
            self.fail("signal the command", None, Effect::Signal);
            self.lost += 1;
            return;
        }
        let lost = self.yes(self.scenario.faults.lost);
        let (turn, now) = (self.chance.micros(100, 3000), self.now);
        match &mut self.command {
            Some(Command::Server(arbiter)) => {
                let ends = matches!(signal, Signal::TERM | Signal::INT | Signal::QUIT);
                if lost && !ends {
                    self.lost += 1;
                    return;
                }
                let pid = arbiter.pid;
                if !arbiter.take_signal(signal) {
                    self.master_ends(Ended::Signal(signal));
                    return;
                }
                if by_operator == Some(signal) {
                    self.wanted = match signal {
                        Signal::TTIN => self.wanted + 1,
                        Signal::TTOU => self.wanted.saturating_sub(1).max(1),
                        Signal::HUP => self.scenario.workers,
                        _ => self.wanted,
                    };
                }
                arbiter.wake(now.later(turn));
                self.at(now.later(turn), Happening::MasterWakes(pid));
            }
            Some(Command::Single { pid, .. }) => {
                let pid = *pid;
                if matches!(signal, Signal::TERM | Signal::INT) {
                    self.request_stop(pid, Asker::Decider);
                } else {
                    // signal(7): the default action of the other signals ends the process.
                    self.end(pid, Ended::Signal(signal), Oom::No);
                }
            }
            None => {}
        }
    }

    pub(crate) fn master_up(&mut self, pid: i32) {
        let Some(Command::Server(arbiter)) = &mut self.command else {
            return;
        };
        if arbiter.pid != pid {
            return;
        }
        arbiter.boot();
        if self.yes(self.scenario.faults.mistaken) {
            // A negative pid stands for a process that is not a worker and is never found.
            self.announce(-pid);
        }
        self.master_turn(pid);
    }

    pub(crate) fn master_turn(&mut self, pid: i32) {
        let (now, graceful) = (self.now, self.scenario.graceful_timeout);
        let fork_fails = self.yes(self.scenario.faults.fork / 50.0);
        let nap = self.chance.millis(1, 100);
        let Some(Command::Server(arbiter)) = &mut self.command else {
            return;
        };
        if arbiter.pid != pid {
            return;
        }
        arbiter.cannot_fork |= fork_fails;
        for step in arbiter.turn(now, graceful, nap) {
            match step {
                Step::Fork => self.fork(),
                Step::Retire(child) => self.request_stop(child, Asker::Server),
                Step::Kill(child) => self.end(child, Ended::Signal(Signal::KILL), Oom::No),
                Step::Exit(status) => {
                    self.master_ends(Ended::Exit(status));
                    return;
                }
                Step::Wake(at) => self.at(at, Happening::MasterWakes(pid)),
            }
        }
    }

    /// The master has ended: its workers notice within a second, finish and exit.
    pub(crate) fn master_ends(&mut self, ended: Ended) {
        let Some(Command::Server(arbiter)) = self.command.take() else {
            return;
        };
        for child in arbiter.children {
            let wait = self.chance.millis(0, 1000);
            self.after(wait, Happening::Retire(child));
        }
        self.command_ended(arbiter.run, ended);
    }

    pub(crate) fn command_ended(&mut self, run: RunId, ended: Ended) {
        let input = Input::CommandEnded {
            run,
            ended,
            oom: Oom::No,
            successor: None,
        };
        let wait = self.chance.micros(50, 3000);
        self.delivered_at = self.delivered_at.max(self.now.later(wait));
        self.at(self.delivered_at, Happening::Deliver(input));
        self.ending = Some(run);
        self.check_over();
    }

    /// When no process is left, the run is over. `RunOver` comes after all earlier inputs.
    pub(crate) fn check_over(&mut self) {
        if self.command.is_none()
            && self.processes.is_empty()
            && self.strays.is_empty()
            && let Some(run) = self.ending.take()
        {
            let wait = self.chance.millis(3, 10);
            let at = self
                .delivered_at
                .max(self.seen_at)
                .max(self.now)
                .later(wait);
            self.at(at, Happening::Deliver(Input::RunOver { run }));
        }
    }

    pub(crate) fn kill_all(&mut self) {
        self.strays.clear();
        let pids: Vec<_> = self.processes.keys().copied().collect();
        for pid in pids {
            self.end(pid, Ended::Signal(Signal::KILL), Oom::No);
        }
        self.master_ends(Ended::Signal(Signal::KILL));
        self.check_over();
    }
}
