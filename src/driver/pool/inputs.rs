//! What the machine and the pool's processes tell, put into the pool's words.

use super::{PoolDriver, starts};
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
                        .onlooker
                        .say(&format!("caps are held by RLIMIT_DATA only: {why}"));
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
                self.last_words = Some(starts::words("OSError", &error));
                Event::TemplateFailed(TemplateEnd::Refused)
            }
            machine::Event::CommandEnded { ended, oom, .. } => {
                // What it said before it ended is read first.
                self.host.get_mut().hear_template();
                while let Some(news) = self.host.get_mut().poll_news() {
                    self.on_news(news);
                }
                Event::TemplateFailed(self.template_end(ended, oom))
            }
            machine::Event::RunOver { .. } => Event::TemplateGone,
            machine::Event::Signalled(signal @ (Signal::TERM | Signal::INT)) => {
                if self.tally.stopped_by.replace(signal).is_some() {
                    self.prints.hurries = true;
                    Event::StopAtOnce
                } else {
                    self.parts.onlooker.stopping(signal, self.pool.busy());
                    Event::Stop
                }
            }
            machine::Event::HelperKilled { .. } => {
                let words = "the kernel killed a child process of a task at a memory limit";
                self.parts.onlooker.say(words);
                return;
            }
            machine::Event::Failed { what, .. } => {
                self.parts.onlooker.say(&what);
                return;
            }
            _ => return,
        };
        self.hand_in(event);
    }

    /// Why the template has ended; kept, unless it said so itself.
    fn template_end(&mut self, ended: machine::Ended, oom: machine::Oom) -> TemplateEnd {
        if self.template_explained {
            return TemplateEnd::Refused;
        }
        let limits = self.pool.limits();
        self.last_words = Some(if self.template_ready {
            starts::death("the template ended", (ended, oom), limits)
        } else {
            starts::death("the template ended while it imported", (ended, oom), limits)
        });
        TemplateEnd::Died(ended, oom)
    }

    pub(super) fn on_news(&mut self, news: News) {
        let event = match news {
            News::TemplateReady(words) => {
                let event = self.on_template(&words);
                self.template_ready = event == Event::TemplateReady;
                event
            }
            News::TemplateFailed(words) => {
                self.last_words = Some(words);
                self.template_explained = true;
                return;
            }
            News::NestUp(slot) => Event::NestUp(SlotId(slot)),
            News::NestGone(slot, oom) => Event::NestGone(SlotId(slot), oom),
            News::NotForked(slot, worker, error) => {
                let words = format!("a worker cannot be forked: {error}");
                if !std::mem::replace(&mut self.warned_forks, true) {
                    self.parts.onlooker.say(&format!("{words}; trying again"));
                }
                self.last_words = Some(starts::words("OSError", &words));
                Event::ForkRefused(SlotId(slot), worker)
            }
            News::Born(slot, worker, secret) => {
                self.expect_prints(worker, secret);
                if let Some(setup) = &self.parts.setup {
                    let to = self.to.entry(worker).or_default();
                    wire::write(to, wire::SETUP, 0, setup);
                }
                let slot = SlotId(slot);
                Event::Born { slot, worker }
            }
            News::Said(worker) => {
                self.hear(worker);
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
            News::Ended {
                worker,
                ended,
                oom,
                peak,
                begun,
                finished,
                receiving,
            } => {
                self.end_prints(worker, begun);
                self.host.get_mut().forget_child(worker);
                self.to.remove(&worker);
                self.peaks.remove(&worker);
                Event::WorkerEnded {
                    worker,
                    ended,
                    oom,
                    peak,
                    begun,
                    finished,
                    receiving,
                }
            }
        };
        self.hand_in(event);
    }
}
