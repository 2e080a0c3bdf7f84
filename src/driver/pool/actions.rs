//! Carries out the actions of the pool.

use std::time::Duration;

use super::{PoolDriver, frames, start_errors};
use crate::{
    host::clock,
    protocol::{
        document,
        frame::{Order, OrderKind},
    },
    queue::{Detail, Failure, Outcome, Verdict},
    supervisor::{
        action,
        pool::input::{Action, Fate, Input, Seq, TemplateEnd},
    },
    units::{Bytes, RunId, Signal, WorkerId},
};

impl PoolDriver {
    pub(super) fn perform(&mut self) {
        while let Some(action) = self.pool.poll_action() {
            self.carry_out(action);
        }
    }

    pub(super) fn carry_out(&mut self, action: Action) {
        let now = clock::now();
        match action {
            Action::StartTemplate => self.start_template(),
            Action::QuitTemplate => {
                self.template_end_known = true;
                self.host.get_ref().quit_template();
            }
            Action::EndTemplate => {
                // From now on its end is intended and is not an error.
                self.template_end_known = true;
                self.send_all();
                let run = self.run;
                let kill = action::Action::KillRun { run };
                self.host.get_mut().carry_out(now, kill);
            }
            Action::Budget(budget) => {
                let budget = action::Action::Budget { budget };
                self.host.get_mut().carry_out(now, budget);
            }
            Action::StartForkServer(slot, cap) => self.host.get_mut().fork_server(slot.0, cap),
            Action::Fork(slot, worker) => self.host.get_mut().fork_child(slot.0, worker),
            Action::Send(worker, seq) => self.send(worker, seq),
            Action::Quit(worker) => self.quit(worker),
            Action::Report {
                about,
                room,
                time_box,
            } => self.request_report(about, room, time_box),
            Action::ForgetReport(worker) => {
                self.forget_reports(worker, "it did not answer in time")
            }
            Action::Halt(worker) => self.host.get_ref().halt_child(worker),
            Action::KillSlot(slot) => self.host.get_mut().kill_slot(now, slot.0),
            Action::KillWorker(worker) => self.host.get_ref().kill_child(worker),
            Action::Suspend(slot) => self.host.get_ref().signal_slot(slot.0, Signal::STOP),
            Action::Resume(slot) => self.host.get_ref().signal_slot(slot.0, Signal::CONT),
            Action::SampleSlot(slot) => {
                let memory = self.host.get_mut().slot_memory(now, slot.0);
                let memory = memory.unwrap_or(Bytes::ZERO);
                self.own.push_back(Input::Sampled(slot, memory));
            }
            // Only `on_frame` delivers results, and it handles this action itself.
            Action::Deliver { .. } => {}
            Action::Fail {
                seq,
                worker,
                cause,
                attempts,
                peak,
                ran,
            } => self.fail(seq, (worker, ran, peak), (cause, attempts)),
            Action::Abandon(seq) => {
                self.tasks.remove(&seq);
                self.tally.abandoned += 1;
            }
            Action::WorkerDiedAtStart(ended, oom) => {
                let limits = self.pool.limits();
                let what = "a worker ended while starting";
                self.start_error = Some(start_errors::ended_early(what, (ended, oom), limits));
            }
            Action::TemplateRestarts(end, rest) => {
                let limits = self.pool.limits();
                self.parts
                    .observer
                    .say(&start_errors::template_restart(end, rest, limits));
            }
            Action::Over(over) => self.over = Some(over),
        }
    }

    pub(super) fn start_template(&mut self) {
        self.run = RunId(self.run.0 + 1);
        (self.template_end_known, self.template_ready) = (false, false);
        let run = self.run;
        match self.host.get_mut().open_pool() {
            Ok(fd) => {
                self.inherited = Some(fd);
                self.host.get_mut().take_prints(!self.prints.is_paused);
                let argv = self.files.argv(&self.python, &self.parts.orders, fd);
                let host = self.host.get_mut();
                host.set_command(argv);
                let start = action::Action::Start { run, worker: None };
                host.carry_out(clock::now(), start);
            }
            Err(error) => {
                let error = format!("open a socket for the template: {error}");
                self.start_error = Some(document::error("OSError", &error));
                self.own
                    .push_back(Input::TemplateFailed(TemplateEnd::Refused));
                self.own.push_back(Input::TemplateGone);
            }
        }
    }

    /// Queues a task for a worker. [`Self::send_all`] sends it at the end of this turn.
    pub(super) fn send(&mut self, worker: WorkerId, seq: Seq) {
        if let Some(task) = self.tasks.get(&seq) {
            let order = Order {
                kind: OrderKind::Task,
                seq,
                body: &task.body,
            };
            order.write(self.to.entry(worker).or_default());
        }
    }

    /// Lets a worker exit after the tasks that it was sent.
    fn quit(&mut self, worker: WorkerId) {
        let quit = Order {
            kind: OrderKind::Quit,
            seq: 0,
            body: &[],
        };
        quit.write(self.to.entry(worker).or_default());
    }

    /// Sends each worker all its frames in one write.
    pub(super) fn send_all(&mut self) {
        for (worker, bytes) in std::mem::take(&mut self.to) {
            self.host.get_mut().send_child(worker, &bytes);
        }
    }

    pub(super) fn fail(
        &mut self,
        seq: Seq,
        end: (Option<WorkerId>, Duration, Option<Bytes>),
        (fate, attempts): (Fate, u32),
    ) {
        let task = self.tasks.remove(&seq);
        let context = frames::FailureContext {
            cap: self.pool.limits().cap.bytes,
            timeout: self.parts.pool.task_timeout,
            size: Bytes(task.as_ref().map_or(0, |task| task.body.len() as u64)),
            is_retry: attempts > 1,
            start_error: self.start_error.as_deref(),
        };
        let id = task.and_then(|task| task.id);
        let (cause, message) = frames::cause_and_message(fate, context);
        if let Some(worker) = end.0 {
            self.note_delivered(worker, seq, id.as_deref());
        }
        let failure = Failure {
            cause,
            attempts,
            detail: Detail::Message(message),
        };
        self.put_failure((seq, id), end, failure);
    }

    pub(super) fn put_failure(
        &mut self,
        (seq, id): (Seq, Option<Box<str>>),
        (worker, ran, peak): (Option<WorkerId>, Duration, Option<Bytes>),
        failure: Failure,
    ) {
        self.tally.failed += 1;
        self.parts.sink.put(Outcome {
            seq,
            id,
            worker,
            micros: frames::in_micros(ran),
            peak,
            verdict: Verdict::Failed(failure),
        });
    }
}
