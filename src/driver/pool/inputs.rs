//! Translates events of the machine and of the pool's processes into events of the pool.

use super::{PoolDriver, start_errors};
use crate::{
    agent::frames as wire,
    host::pool::News,
    supervisor::{
        event::{self as machine, CapMechanism},
        pool::event::{Event, SlotId, TemplateEnd},
    },
    units::Signal,
};

impl PoolDriver {
    pub(super) fn on_machine(&mut self, event: machine::Event) {
        let event = match event {
            machine::Event::Available(bytes) => Event::Available(bytes),
            machine::Event::Machine(found) => {
                if found.caps == CapMechanism::Rlimit && !self.warned_caps {
                    self.warned_caps = true;
                    let why = found.why_not.unwrap_or_default();
                    self.parts
                        .observer
                        .say(&format!("caps are enforced by RLIMIT_DATA only: {why}"));
                }
                return;
            }
            machine::Event::WorkerEnded {
                worker, oom, peak, ..
            } => {
                self.host.get_mut().on_nest_gone(worker, oom, peak);
                return;
            }
            machine::Event::Started { .. } => {
                if let Some(fd) = self.inherited.take() {
                    self.host.get_mut().close_inherited(fd);
                }
                return;
            }
            machine::Event::StartFailed { error, .. } => {
                self.start_error = Some(start_errors::error_json("OSError", &error));
                Event::TemplateFailed(TemplateEnd::Refused)
            }
            machine::Event::CommandEnded { ended, oom, .. } => {
                // Its last messages are read before its end is handled.
                self.host.get_mut().hear_template();
                while let Some(news) = self.host.get_mut().poll_news() {
                    self.on_news(news);
                }
                Event::TemplateFailed(self.template_end(ended, oom))
            }
            machine::Event::RunOver { .. } => Event::TemplateGone,
            machine::Event::Signalled(signal @ (Signal::TERM | Signal::INT)) => {
                if self.tally.stopped_by.replace(signal).is_some() {
                    self.prints.is_urgent = true;
                    Event::StopAtOnce
                } else {
                    self.parts.observer.stopping(signal, self.pool.busy());
                    Event::Stop
                }
            }
            machine::Event::HelperKilled { .. } => {
                let message = "the kernel killed a child process of a task at a memory limit";
                self.parts.observer.say(message);
                return;
            }
            machine::Event::Failed { what, .. } => {
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
            News::TemplateReady(report) => {
                let event = self.on_template(&report);
                self.template_ready = event == Event::TemplateReady;
                event
            }
            News::TemplateFailed(error) => {
                self.start_error = Some(error);
                self.template_end_known = true;
                return;
            }
            News::NestUp(slot) => Event::NestUp(SlotId(slot)),
            News::NestGone(slot, oom) => Event::NestGone(SlotId(slot), oom),
            News::NotForked(slot, worker, error) => {
                let message = format!("a worker cannot be forked: {error}");
                if !std::mem::replace(&mut self.warned_forks, true) {
                    self.parts.observer.say(&format!("{message}; trying again"));
                }
                self.start_error = Some(start_errors::error_json("OSError", &message));
                Event::ForkRefused(SlotId(slot), worker)
            }
            News::Born(worker, secret) => {
                self.expect_prints(worker, secret);
                if let Some(setup) = &self.parts.setup {
                    let to = self.to.entry(worker).or_default();
                    wire::write(to, wire::SETUP, 0, setup);
                }
                return;
            }
            News::Said(worker) => {
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
                Event::WorkerEnded(end)
            }
        };
        self.hand_in(event);
    }
}
