//! What operators wish for: signals, and requests that are answered when they have come true.

use std::collections::BTreeSet;

use super::{
    Supervisor,
    action::{Action, Answer, Notice},
    event::{Ask, Stop},
    report::{Cause, Report},
    spec::Kind,
    worker::{By, Drain, Worker},
};
use crate::units::{RequestId, Signal, Timestamp, WorkerId};

/// Requests that wait for their answer.
#[derive(Debug, Default)]
pub(super) struct Operator {
    waiting: Vec<Waiting>,
    stops: Vec<RequestId>,
}

#[derive(Debug)]
struct Waiting {
    request: Option<RequestId>,
    reload: bool,
    total: usize,
    /// Those that have still to go.
    left: BTreeSet<WorkerId>,
}

impl Operator {
    pub(super) const fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn on_gone(&mut self, worker: WorkerId) {
        for waiting in &mut self.waiting {
            waiting.left.remove(&worker);
        }
    }
}

impl Supervisor {
    /// DESIGN §7: TERM and INT stop, a second one at once; one is a reload; the others are the
    /// command's.
    pub(super) fn on_signal(&mut self, now: Timestamp, signal: Signal) {
        if matches!(signal, Signal::TERM | Signal::INT) {
            let how = if self.service.is_stopping() {
                Stop::Now
            } else {
                Stop::Graceful
            };
            self.stop(now, how);
            return;
        }
        if signal == Signal::RELOAD {
            self.on_reload_signal();
            return;
        }
        if self.service.pid().is_none() {
            return;
        }
        self.act(Action::SignalCommand {
            run: self.service.run(),
            signal,
        });
        let Kind::Server(habits) = self.spec.kind else {
            return;
        };
        if signal == habits.quit {
            self.let_end(now);
        } else if signal == habits.reload {
            let leaves_by = now.later(self.spec.stop.grace);
            for worker in self.workers.values_mut() {
                worker.expected = Some(Cause::Reload);
                worker.leaves_by = Some(leaves_by);
            }
            self.spare.on_reload(now);
        } else if signal == habits.second_master {
            self.spare.unsettle(now);
        } else if signal == habits.raise {
            self.spare.on_wish(now, true);
        } else if signal == habits.lower {
            self.on_fewer(now);
            self.spare.on_wish(now, false);
        }
    }

    /// The service manager asks so (systemd.service(5), `notify-reload`), and waits until it hears
    /// that the reload has begun and is over.
    fn on_reload_signal(&mut self) {
        if self.service.is_stopping() {
            return;
        }
        if self.is_job() {
            self.tell(Report::Warning(
                "a job is one run and is not reloaded".to_owned(),
            ));
            self.act(Action::Notify(Notice::Reloading));
            self.act(Action::Notify(Notice::Ready));
            return;
        }
        self.reload(None);
    }

    /// All workers are replaced. The manager's patience is for one that only reads its files again.
    fn reload(&mut self, request: Option<RequestId>) {
        self.act(Action::Notify(Notice::Reloading));
        let each = self.spec.stop.grace.saturating_add(self.spec.ready.timeout);
        let count = u32::try_from(self.workers.len()).unwrap_or(u32::MAX);
        let longest = each.saturating_mul(count.max(1));
        self.act(Action::Notify(Notice::Extend(longest)));
        self.want_all_gone(request, Cause::Reload);
    }

    /// Its server was told to want one fewer: its oldest goes, as far as we know its books.
    fn on_fewer(&mut self, now: Timestamp) {
        let leaves_by = now.later(self.spec.stop.grace);
        let last_one = self.spare.wanted() == Some(1) && self.spare.raised().is_none();
        let goes_already = |worker: &Worker| {
            let lowered = |drain: &Drain| drain.leave.by == By::Server;
            worker.leaves_by.is_some() || worker.drain().is_some_and(lowered)
        };
        let oldest = self.workers.values_mut().find(|one| !goes_already(one));
        if let Some(oldest) = oldest.filter(|_| !last_one) {
            oldest.expected = Some(Cause::Scale);
            oldest.leaves_by = Some(leaves_by);
        }
    }

    pub(super) fn on_asked(&mut self, now: Timestamp, request: RequestId, ask: Ask) {
        if let Ask::Stop(how) = ask {
            self.operator.stops.push(request);
            self.stop(now, how);
            return;
        }
        if let Ask::Report(worker) = ask {
            self.on_report_asked(now, request, worker);
            return;
        }
        if ask == Ask::Upgrade {
            self.on_upgrade_asked(request);
            return;
        }
        let refusal = if self.service.is_stopping() {
            Some("the service is stopping".to_owned())
        } else if self.is_job() {
            Some("a job is one run and is not recycled".to_owned())
        } else {
            None
        };
        if let Some(why) = refusal {
            self.act(Action::Reply {
                request,
                answer: Answer::Refused(why),
            });
            return;
        }
        match ask {
            Ask::Recycle(worker) => {
                if self.workers.contains_key(&worker) {
                    self.want_gone(Some(request), BTreeSet::from([worker]), Cause::Request);
                } else {
                    let answer = Answer::Unknown(format!("there is no worker {worker} alive"));
                    self.act(Action::Reply { request, answer });
                }
            }
            Ask::RecycleAll => self.want_all_gone(Some(request), Cause::Request),
            Ask::Reload => self.reload(Some(request)),
            Ask::Report(_) | Ask::Stop(_) | Ask::Upgrade => {}
        }
    }

    fn on_upgrade_asked(&mut self, request: RequestId) {
        match self.holds_up_upgrade() {
            Some(why) => self.refuse(request, why),
            None => self.act(Action::CheckUpgrade { request }),
        }
    }

    /// RACE: while the new binary was tried the service may have begun to stop, or its server has
    /// ended: it is asked again.
    pub(super) fn on_upgrade_checked(
        &mut self,
        request: RequestId,
        verdict: Result<String, String>,
    ) {
        match (verdict, self.holds_up_upgrade()) {
            (Err(why), _) => self.refuse(request, &why),
            (Ok(_), Some(why)) => self.refuse(request, why),
            (Ok(version), None) => {
                let answer = Answer::Done(format!("supervise {version} takes over"));
                self.act(Action::Reply { request, answer });
                self.act(Action::Upgrade);
            }
        }
    }

    fn refuse(&mut self, request: RequestId, why: &str) {
        let answer = Answer::Refused(why.to_owned());
        self.act(Action::Reply { request, answer });
    }

    fn want_all_gone(&mut self, request: Option<RequestId>, cause: Cause) {
        let all = self.workers.keys().copied().collect();
        self.want_gone(request, all, cause);
    }

    fn want_gone(&mut self, request: Option<RequestId>, left: BTreeSet<WorkerId>, cause: Cause) {
        for id in &left {
            if let Some(worker) = self.workers.get_mut(id) {
                worker.wanted_gone = Some(cause);
            }
        }
        let reload = cause == Cause::Reload;
        self.operator.waiting.push(Waiting {
            request,
            reload,
            total: left.len(),
            left,
        });
        self.replan = true;
    }

    /// Answers what has come true: all that had to go are gone, and all that are wanted serve.
    pub(super) fn mind_asks(&mut self, _now: Timestamp) {
        let count = self.count();
        let whole = match self.spec.kind {
            Kind::Server(_) => {
                count.draining == 0 && self.spare.wanted().is_some_and(|n| count.ready >= n)
            }
            Kind::Single => self.service.answers(),
        };
        if !whole {
            return;
        }
        let (done, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.operator.waiting)
            .into_iter()
            .partition(|waiting| waiting.left.is_empty());
        self.operator.waiting = waiting;
        for one in done {
            if one.reload {
                self.act(Action::Notify(Notice::Ready));
            }
            if let Some(request) = one.request {
                let workers = if one.total == 1 {
                    "worker was"
                } else {
                    "workers were"
                };
                let answer = Answer::Done(format!("{} {workers} replaced", one.total));
                self.act(Action::Reply { request, answer });
            }
        }
    }

    pub(super) fn refuse_asks(&mut self, why: &str) {
        for waiting in std::mem::take(&mut self.operator.waiting) {
            if let Some(request) = waiting.request {
                let answer = Answer::Refused(why.to_owned());
                self.act(Action::Reply { request, answer });
            }
        }
    }

    /// Gives up all replacements that operators wait for. An operator who asked by a request is
    /// answered; for a reload by signal there is a warning.
    pub(super) fn refuse_recycles(&mut self, why: &str) {
        let waiting = std::mem::take(&mut self.operator.waiting);
        if waiting.is_empty() {
            return;
        }
        for worker in self.workers.values_mut() {
            worker.wanted_gone = None;
            let wish = |cause: &Cause| matches!(cause, Cause::Request | Cause::Reload);
            worker.told_due = worker.told_due.filter(|cause| !wish(cause));
        }
        for one in waiting {
            let gone = one.total.saturating_sub(one.left.len());
            if one.reload {
                self.act(Action::Notify(Notice::Ready));
            }
            let why = format!("{why}; {gone} of {} replaced", one.total);
            match one.request {
                Some(request) => {
                    let answer = Answer::Refused(why);
                    self.act(Action::Reply { request, answer });
                }
                None => self.tell(Report::Warning(format!("the reload is given up: {why}"))),
            }
        }
    }

    pub(super) fn answer_stops(&mut self) {
        for request in std::mem::take(&mut self.operator.stops) {
            let answer = Answer::Done("the service has stopped".to_owned());
            self.act(Action::Reply { request, answer });
        }
    }
}
