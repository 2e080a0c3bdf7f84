//! Which component carries out an action, and which component handles an event of the kernel.

use super::{Host, kernel_events::Source, pool::PoolHost, process::open_files::Waiting};
use crate::{
    supervisor::{action::Action, input::Input},
    units::{Signal, Timestamp},
};

impl Host {
    /// Carries out an action. A failure becomes an input.
    pub fn carry_out(&mut self, now: Timestamp, action: Action) {
        let (context, groups) = (&mut self.context, &mut self.cgroups);
        match action {
            Action::Start { run, worker } => self.start(run, worker),
            Action::Adopt {
                run: _,
                worker,
                pid,
                cap,
            } => self.workers.adopt(
                context,
                groups,
                Waiting {
                    id: worker.into(),
                    pid,
                    cap,
                },
            ),
            Action::TreatAsServer { worker, server } => self.treat_as_server(now, worker, server),
            Action::Cap { worker, cap } => self.workers.set_cap(context, groups, worker, cap),
            Action::Budget { budget } => groups.set_budget(context, budget),
            Action::SetThreshold { worker, room } => {
                self.workers.arm_threshold(context, worker, room)
            }
            Action::Sample { worker, how } => self.workers.sample(context, now, worker, how),
            Action::ListProcesses { worker } => self.workers.list_processes(context, now, worker),
            Action::SignalCommand { run, signal } => self.signal_command(run, signal),
            Action::SignalWorker { worker, signal } => {
                self.workers.signal(context, worker, signal);
            }
            Action::EndLeftover { process, signal } => {
                self.workers.end_leftover(context, groups, process, signal);
            }
            Action::KillWorker { worker } => self.workers.kill(context, groups, now, worker.into()),
            Action::KillRun { run } => self.kill_run(run),
            Action::Prioritize { worker, priority } => {
                self.workers.prioritize(context, now, worker, priority);
            }
            Action::Notify(notice) => self.notify(now, &notice),
            Action::TerminationMessage { text } => {
                self.systemd.write_termination_message(context, &text)
            }
            // The driver carries these out: it knows the requester, talks to the agent, and exits.
            Action::FindAgent { .. }
            | Action::AskAgent { .. }
            | Action::WithdrawReport { .. }
            | Action::NoteStack { .. }
            | Action::KeepReport { .. }
            | Action::ReadCounts
            | Action::ReadRoutes
            | Action::DrainBacklog { .. }
            | Action::CheckUpgrade { .. }
            | Action::Upgrade
            | Action::Reply { .. }
            | Action::Exit { .. } => {}
        }
    }

    /// Collects what has happened. Returns true if a worker of a pool has sent more than was read.
    pub fn collect(&mut self, now: Timestamp) -> bool {
        for (source, token) in self.context.watches().ready() {
            self.on_event(now, source, token);
        }
        self.discover(now);
        if let Some(run) = self.processes.run() {
            self.listen.check(&mut self.context, now, run.id());
        }
        let (context, groups) = (&mut self.context, &self.cgroups);
        self.workers
            .check_kills(context, groups, self.pool.as_ref(), now);
        let is_urgent = self.workers.take_urgent();
        for task in self.housekeeping.due(now, is_urgent) {
            task(self, now);
        }
        self.pool.as_mut().is_some_and(PoolHost::take_more)
    }

    fn on_event(&mut self, now: Timestamp, source: Source, token: u64) {
        let (context, groups) = (&mut self.context, &mut self.cgroups);
        match source {
            Source::Prints | Source::ForkServer(_) | Source::Child(_) | Source::Template => {
                self.on_pool_event(source, token);
            }
            Source::Process(id) => {
                context.watches_mut().forget(token);
                if let Some(pid) = self.workers.on_end(context, groups, id) {
                    self.discovery.forget(pid);
                }
            }
            Source::Keeper => self.on_keeper(now),
            Source::Forks => self.discovery.on_forks(now),
            Source::Threshold(worker) => self.workers.on_threshold(context, worker, token),
            Source::Oom(id) => self.workers.on_oom(now, id),
            Source::Pressure => context.tell(Input::MemoryPressure),
            Source::SmapsSampler => self.workers.on_sampled(context),
            Source::AgentAnswers => self.agent_answers.on_event(),
            Source::Waker => {
                let is_ready = self.systemd.take_answer();
                self.on_answer(is_ready);
                self.tell_copies();
            }
            Source::NotifySocket => self.on_notify_messages(),
            Source::Signals => {
                for signal in self.processes.take_signals() {
                    if signal == Signal::CHLD {
                        self.on_child(now);
                    } else {
                        self.context.tell(Input::Signalled(signal));
                    }
                }
            }
        }
    }

    fn on_answer(&mut self, is_ready: bool) {
        if let Some(run) = self.processes.run().filter(|_| is_ready) {
            self.context.tell(Input::ServiceReady { run: run.id() });
        }
    }
}
