//! Translates inputs from the host and from the pool's processes into inputs of the pool.

use super::{PoolDriver, start_errors};
use crate::{
    host::pool::News,
    protocol::{
        document,
        frame::{self, Order, OrderKind},
    },
    supervisor::{
        input::{self as machine, CapMechanism},
        pool::input::{Input, SlotId, TemplateEnd},
    },
    units::Signal,
};

impl PoolDriver {
    pub(super) fn on_machine(&mut self, event: machine::Input) {
        let event = match event {
            machine::Input::Available(bytes) => Input::Available(bytes),
            machine::Input::Machine(found) => {
                if found.caps == CapMechanism::Rlimit && !self.warned_caps {
                    self.warned_caps = true;
                    let why = found.why_not.clone().unwrap_or_default();
                    self.parts
                        .observer
                        .say(&format!("caps are enforced by RLIMIT_DATA only: {why}"));
                }
                Input::Machine(found)
            }
            machine::Input::Started { .. } => {
                if let Some(fd) = self.inherited.take() {
                    self.host.get_mut().close_inherited(fd);
                }
                return;
            }
            machine::Input::StartFailed { error, .. } => {
                self.start_error = Some(document::error("OSError", &error));
                Input::TemplateFailed(TemplateEnd::Refused)
            }
            machine::Input::CommandEnded { ended, oom, .. } => {
                // Its last messages are read before its end is handled.
                self.host.get_mut().read_template_messages();
                while let Some(news) = self.host.get_mut().poll_news() {
                    self.on_news(news);
                }
                Input::TemplateFailed(self.template_end(ended, oom))
            }
            machine::Input::RunOver { .. } => Input::TemplateGone,
            machine::Input::Signalled(signal @ (Signal::TERM | Signal::INT)) => {
                if self.tally.stopped_by.replace(signal).is_some() {
                    self.prints.is_urgent = true;
                    Input::StopAtOnce
                } else {
                    self.parts.observer.stopping(signal, self.pool.busy());
                    Input::Stop
                }
            }
            machine::Input::Failed { what, .. } => {
                self.parts.observer.say(&what);
                return;
            }
            _ => return,
        };
        self.hand_in(event);
    }

    /// Records why the template has ended, unless that is known already.
    fn template_end(&mut self, ended: machine::Ended, oom: machine::Oom) -> TemplateEnd {
        if self.template_end_known {
            return TemplateEnd::Refused;
        }
        let limits = self.pool.limits();
        self.start_error = Some(if self.template_ready {
            start_errors::ended_early("the template ended", (ended, oom), limits)
        } else {
            start_errors::ended_early(
                "the template ended during its imports",
                (ended, oom),
                limits,
            )
        });
        TemplateEnd::Died(ended, oom)
    }

    pub(super) fn on_news(&mut self, news: News) {
        let event = match news {
            News::TemplateReady(imports) => {
                let event = self.on_template(&imports);
                self.template_ready = event == Input::TemplateReady;
                event
            }
            News::TemplateFailed(error) => {
                self.start_error = Some(error);
                self.template_end_known = true;
                return;
            }
            News::ChildKilled => {
                let message = "the kernel killed a child process of a task at a memory limit";
                self.parts.observer.say(message);
                return;
            }
            News::ForkServerUp(slot) => Input::ForkServerUp(SlotId(slot)),
            News::ForkServerGone(slot, oom) => Input::ForkServerGone(SlotId(slot), oom),
            News::NotForked(slot, worker, error) => {
                let message = format!("a worker cannot be forked: {error}");
                if !std::mem::replace(&mut self.warned_forks, true) {
                    self.parts.observer.say(&format!("{message}; trying again"));
                }
                self.start_error = Some(document::error("OSError", &message));
                Input::ForkRefused(SlotId(slot), worker)
            }
            News::Forked(worker, pid, secret) => {
                self.expect_prints(worker, secret);
                if let Some(setup) = &self.parts.setup {
                    let order = Order {
                        kind: OrderKind::Setup,
                        seq: frame::VERSION,
                        body: setup,
                    };
                    order.write(self.to.entry(worker).or_default());
                }
                Input::Forked { worker, pid }
            }
            News::Received(worker) => {
                self.read_frames(worker);
                return;
            }
            News::Printed { worker, piece } => {
                self.on_printed(worker, &piece);
                return;
            }
            News::PrintsOver(worker) => {
                self.on_prints_over(worker);
                return;
            }
            News::Ended(end) => {
                let worker = end.worker;
                self.end_prints(worker, end.begun);
                self.host.get_mut().forget_child(worker);
                self.to.remove(&worker);
                self.peaks.remove(&worker);
                Input::WorkerEnded(end)
            }
        };
        self.hand_in(event);
    }
}
