//! The command's life in the pretend machine: a gunicorn master with its workers, or one program.

use supervise::{
    supervisor::{
        event::{Effect, Ended, Event, Oom},
        spec::RestartWhen,
    },
    units::{Bytes, RunId, Signal, WorkerId},
};

use crate::{
    arbiter::{Arbiter, Deed},
    process::Asker,
    world::{Command, Happening, World},
};

impl World {
    pub(crate) fn start(&mut self, run: RunId, worker: Option<(WorkerId, Option<Bytes>)>) {
        let wait = self.chance.millis(1, 30);
        if self.yes(self.scenario.faults.start) {
            let errno = self.chance.pick(&[11, 12, 12, 11, 2, 13]);
            let error = "fork".to_owned();
            self.tell(wait, Event::StartFailed { run, errno, error });
            self.tell(wait * 2, Event::RunOver { run });
            return;
        }
        self.strays.clear();
        let pid = self.next_pid();
        self.tell(wait, Event::Started { run, pid });
        self.seen_at = self.now.later(wait);
        self.told_at = self.seen_at;
        let Some((worker, cap)) = worker else {
            let config = self.scenario.workers;
            self.wish = config;
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
        self.show(pid);
    }

    /// It is seen within 0.1 s, oldest first.
    pub(crate) fn show(&mut self, pid: i32) {
        let Some(Command::Server(arbiter)) = &self.command else {
            return;
        };
        let run = arbiter.run;
        let wait = self.chance.millis(0, 100);
        self.seen_at = self.seen_at.max(self.now.later(wait));
        self.at(
            self.seen_at,
            Happening::Tell(Event::WorkerSeen { run, pid }),
        );
    }

    pub(crate) fn signal_command(&mut self, signal: Signal, by_operator: Option<Signal>) {
        if self.yes(self.scenario.faults.signal) {
            self.fail("signal the command", None, Effect::Signal);
            self.lost += 1;
            return;
        }
        let lost = self.yes(self.scenario.faults.lost);
        let (turn, early) = (self.chance.micros(100, 3000), self.now);
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
                    self.wish = match signal {
                        Signal::TTIN => self.wish + 1,
                        Signal::TTOU => self.wish.saturating_sub(1).max(1),
                        Signal::HUP => self.scenario.workers,
                        _ => self.wish,
                    };
                }
                arbiter.wake(early.later(turn));
                self.at(early.later(turn), Happening::MasterWakes(pid));
            }
            Some(Command::Single { pid, .. }) => {
                let pid = *pid;
                if matches!(signal, Signal::TERM | Signal::INT) {
                    self.ask_to_go(pid, Asker::Decider);
                } else {
                    // signal(7): the default of the others is to end the process.
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
            // Below zero: it is no process of ours, and is never found.
            self.show(-pid);
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
        for deed in arbiter.turn(now, graceful, nap) {
            match deed {
                Deed::Fork => self.fork(),
                Deed::Retire(child) => self.ask_to_go(child, Asker::Server),
                Deed::Kill(child) => self.end(child, Ended::Signal(Signal::KILL), Oom::No),
                Deed::Exit(status) => {
                    self.master_ends(Ended::Exit(status));
                    return;
                }
                Deed::Wake(at) => self.at(at, Happening::MasterWakes(pid)),
            }
        }
    }

    /// The master is gone: its workers notice within a second, finish and go.
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
        let event = Event::CommandEnded {
            run,
            ended,
            oom: Oom::No,
            successor: None,
        };
        let wait = self.chance.micros(50, 3000);
        self.told_at = self.told_at.max(self.now.later(wait));
        self.at(self.told_at, Happening::Tell(event));
        self.ending = Some(run);
        self.mind_over();
    }

    /// Nothing is left: said after all that happened before.
    pub(crate) fn mind_over(&mut self) {
        if self.command.is_none()
            && self.processes.is_empty()
            && self.strays.is_empty()
            && let Some(run) = self.ending.take()
        {
            let wait = self.chance.millis(3, 10);
            let at = self.told_at.max(self.seen_at).max(self.now).later(wait);
            self.at(at, Happening::Tell(Event::RunOver { run }));
        }
    }

    pub(crate) fn kill_all(&mut self) {
        self.strays.clear();
        let pids: Vec<_> = self.processes.keys().copied().collect();
        for pid in pids {
            self.end(pid, Ended::Signal(Signal::KILL), Oom::No);
        }
        self.master_ends(Ended::Signal(Signal::KILL));
        self.mind_over();
    }
}
