//! Signals and requests of operators. A request is answered when it has been carried out.

use std::{collections::BTreeSet, time::Duration};

use crate::supervisor::{
    Supervisor,
    action::{Action, Answer, Notice},
    cause::Cause,
    event::Event,
    input::{Ask, Stop},
    kind::scale::Scaling,
};
use crate::units::{RequestId, Signal, Timestamp, WorkerId};

/// Requests that wait for their answer.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    /// Recycles and reloads.
    waiting: Vec<Waiting>,
    /// Stops.
    stops: Vec<RequestId>,
    /// A change of the number of workers.
    scaling: Option<Scaling>,
}

#[derive(Debug)]
struct Waiting {
    /// `None`: it came by a signal, and is not answered.
    request: Option<RequestId>,
    reload: bool,
    /// The number of workers to replace.
    total: usize,
    /// Those of them that have not ended yet.
    left: BTreeSet<WorkerId>,
}

impl Operator {
    pub(crate) const fn has_waiting_requests(&self) -> bool {
        !self.waiting.is_empty() || self.scaling.is_some()
    }

    pub(crate) const fn is_scaling(&self) -> bool {
        self.scaling.is_some()
    }

    pub(crate) const fn scale(&mut self, scaling: Scaling) {
        self.scaling = Some(scaling);
    }

    pub(crate) const fn take_scaling(&mut self) -> Option<Scaling> {
        self.scaling.take()
    }

    pub(crate) fn on_gone(&mut self, worker: WorkerId) {
        for waiting in &mut self.waiting {
            waiting.left.remove(&worker);
        }
    }
}

impl Supervisor {
    /// Handles a signal to the supervisor (DESIGN §7). TERM and INT stop the service, and a second
    /// one stops it at once. One signal reloads, and so does HUP if the server has no reload of its
    /// own. All others are passed on to the command.
    pub(crate) fn on_signal(&mut self, now: Timestamp, signal: Signal) {
        if matches!(signal, Signal::TERM | Signal::INT) {
            let how = if self.state.service.is_stopping() {
                Stop::Now
            } else {
                Stop::Graceful
            };
            self.stop(now, how);
            return;
        }
        if signal == Signal::RELOAD || (signal == Signal::HUP && self.reloads_at_hangup()) {
            self.on_reload_signal();
            return;
        }
        if self.state.service.pid().is_none() {
            return;
        }
        if let Some(profile) = self.profile()
            && profile.raise().is_none()
            && matches!(signal, Signal::TTIN | Signal::TTOU)
        {
            // A process that does not handle these signals is suspended by them (signal(7)).
            let name = profile.name;
            self.emit(Event::Warning(format!(
                "{name} cannot change its number of workers while it runs; {signal} is not passed on"
            )));
            return;
        }
        // Its parent would start or stop a copy of the program.
        if self.may_become_fleet() && matches!(signal, Signal::TTIN | Signal::TTOU) {
            return;
        }
        self.act(Action::SignalCommand {
            run: self.state.service.run(),
            signal,
        });
        self.on_server_signal(now, signal);
    }

    /// The service manager asks for a reload (systemd.service(5), `notify-reload`). It waits until
    /// it is notified that the reload has begun and is over.
    fn on_reload_signal(&mut self) {
        if self.state.service.is_stopping() {
            return;
        }
        let refused = if self.is_job() {
            Some("a job is one run and is not reloaded".to_owned())
        } else {
            let why = self.any_must_stay();
            why.map(|why| format!("the service is not reloaded: {why}"))
        };
        if let Some(why) = refused {
            self.emit(Event::Warning(why));
            self.act(Action::Notify(Notice::Reloading));
            self.act(Action::Notify(Notice::Ready));
            return;
        }
        self.reload(None);
    }

    /// Replaces all workers. The service manager's timeout is extended, because it is meant for
    /// services that only read their files again.
    fn reload(&mut self, request: Option<RequestId>) {
        self.state.agents.on_reload();
        self.act(Action::Notify(Notice::Reloading));
        self.act(Action::Notify(Notice::Extend(self.replacing_takes())));
        self.replace_all(request, Cause::Reload);
    }

    /// The longest time in which all workers are replaced, one after the other.
    fn replacing_takes(&self) -> Duration {
        let each = self.spec.stop.grace.saturating_add(self.spec.ready.timeout);
        let count = u32::try_from(self.state.workers.len()).unwrap_or(u32::MAX);
        each.saturating_mul(count.max(1))
    }

    /// The longest time until a reload is over. `None`: there is no reload.
    pub(crate) fn longest_reload(&self) -> Option<Duration> {
        let mut waiting = self.operator.waiting.iter();
        waiting
            .any(|one| one.reload)
            .then(|| self.replacing_takes())
    }

    pub(crate) fn on_asked(&mut self, now: Timestamp, request: RequestId, ask: Ask) {
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
        if let Ask::Scale(goal) = ask {
            self.on_scale_asked(now, request, goal);
            return;
        }
        if let Some(why) = self.refuses_recycle() {
            self.refuse(request, why);
            return;
        }
        let stays = match ask {
            Ask::Recycle(id) => {
                let worker = self.state.workers.get(&id);
                worker.and_then(|worker| self.must_stay(worker))
            }
            Ask::RecycleAll | Ask::Reload => self.any_must_stay(),
            Ask::Report(_) | Ask::Scale(_) | Ask::Stop(_) | Ask::Upgrade => None,
        };
        if let Some(why) = stays {
            self.refuse(request, &why);
            return;
        }
        match ask {
            Ask::Recycle(worker) => {
                if self.state.workers.contains_key(&worker) {
                    self.request_replacement(
                        Some(request),
                        BTreeSet::from([worker]),
                        Cause::Request,
                    );
                } else {
                    let answer = Answer::Unknown(format!("there is no worker {worker} alive"));
                    self.act(Action::Reply { request, answer });
                }
            }
            Ask::RecycleAll => self.replace_all(Some(request), Cause::Request),
            Ask::Reload => self.reload(Some(request)),
            Ask::Report(_) | Ask::Scale(_) | Ask::Stop(_) | Ask::Upgrade => {}
        }
    }

    fn on_upgrade_asked(&mut self, request: RequestId) {
        match self.holds_up_upgrade() {
            Some(why) => self.refuse(request, why),
            None => self.act(Action::CheckUpgrade { request }),
        }
    }

    /// RACE: while the new binary was checked, the service may have begun to stop, or its server
    /// may have ended. So whether the upgrade is possible is checked again.
    pub(crate) fn on_upgrade_checked(
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

    pub(crate) fn refuse(&mut self, request: RequestId, why: &str) {
        let answer = Answer::Refused(why.to_owned());
        self.act(Action::Reply { request, answer });
    }

    fn replace_all(&mut self, request: Option<RequestId>, cause: Cause) {
        let all = self.state.workers.keys().copied().collect();
        self.request_replacement(request, all, cause);
    }

    fn request_replacement(
        &mut self,
        request: Option<RequestId>,
        left: BTreeSet<WorkerId>,
        cause: Cause,
    ) {
        for id in &left {
            if let Some(worker) = self.state.workers.get_mut(id) {
                worker.request_replacement(cause);
            }
        }
        let reload = cause == Cause::Reload;
        self.operator.waiting.push(Waiting {
            request,
            reload,
            total: left.len(),
            left,
        });
        self.plan.touch();
    }

    /// Answers the requests that were carried out: their workers have ended, and all wanted workers
    /// serve.
    pub(crate) fn answer_recycles(&mut self) {
        if !self.has_all_workers() {
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

    pub(crate) fn refuse_asks(&mut self, why: &str) {
        let scaling = self.operator.scaling.take();
        if let Some(request) = scaling.and_then(|scaling| scaling.request()) {
            self.refuse(request, why);
        }
        for waiting in std::mem::take(&mut self.operator.waiting) {
            if let Some(request) = waiting.request {
                let answer = Answer::Refused(why.to_owned());
                self.act(Action::Reply { request, answer });
            }
        }
    }

    /// Gives up all replacements that operators wait for. Requests are answered. A reload by signal
    /// causes a warning.
    pub(crate) fn refuse_recycles(&mut self, why: &str) {
        let waiting = std::mem::take(&mut self.operator.waiting);
        if waiting.is_empty() {
            return;
        }
        for worker in self.state.workers.values_mut() {
            worker.withdraw_request();
        }
        for one in waiting {
            let replaced = one.total.saturating_sub(one.left.len());
            if one.reload {
                self.act(Action::Notify(Notice::Ready));
            }
            let why = format!("{why}; {replaced} of {} replaced", one.total);
            match one.request {
                Some(request) => {
                    let answer = Answer::Refused(why);
                    self.act(Action::Reply { request, answer });
                }
                None => self.emit(Event::Warning(format!("the reload is given up: {why}"))),
            }
        }
    }

    pub(crate) fn answer_stops(&mut self) {
        for request in std::mem::take(&mut self.operator.stops) {
            let answer = Answer::Done("the service has stopped".to_owned());
            self.act(Action::Reply { request, answer });
        }
    }
}
