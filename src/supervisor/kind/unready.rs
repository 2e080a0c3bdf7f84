//! Workers that do not become ready.

use std::time::Duration;

use crate::{
    servers::fleet,
    supervisor::{Supervisor, action::Action, cause::Cause, spec::ReadyWhen, worker::Worker},
    units::{Timestamp, WorkerId},
};

/// A copy that does not serve after this time causes a warning: perhaps it ignores its socket.
const COPY_BOOTS_WITHIN: Duration = Duration::from_secs(20);

impl Supervisor {
    /// Warns about workers that do not become ready, because candidates wait for them.
    pub(super) fn warn_of_unready(&mut self, now: Timestamp) {
        let is_auto = self.spec.ready.when == ReadyWhen::Auto;
        let timeout = if self.is_fleet() && is_auto {
            self.spec.ready.timeout.min(COPY_BOOTS_WITHIN)
        } else {
            self.spec.ready.timeout
        };
        let workers = self.state.workers.values();
        let starting = workers.filter(|worker| worker.is_starting());
        let starting: Vec<_> = starting
            .map(|worker| (worker.id(), worker.seen()))
            .collect();
        for (id, seen) in starting {
            if now < seen.later(timeout) {
                self.wake_at(now, seen.later(timeout));
            } else {
                let hint = self.hint_for_unready();
                let seconds = timeout.as_secs();
                self.warn_once(format!("{id} is not ready"), || {
                    format!(
                        "{id} is not ready after {seconds}s; no worker is replaced until it is \
                         ready{hint}"
                    )
                });
            }
        }
    }

    /// What a copy of a fleet has to do to be ready.
    fn hint_for_unready(&self) -> &'static str {
        match &self.spec.ready.when {
            _ if !self.is_fleet() => "",
            ReadyWhen::Auto | ReadyWhen::Delay(_) if self.spec.command.listen.is_empty() => "",
            ReadyWhen::Auto | ReadyWhen::Delay(_) => {
                ". hint: it does not accept connections at a socket of `listen`; COMMAND has to \
                 use LISTEN_FDS, or `{fd}` in its arguments"
            }
            ReadyWhen::Notify => {
                ". hint: it has to accept connections and to send READY=1 to NOTIFY_SOCKET itself"
            }
            ReadyWhen::Tcp(_) | ReadyWhen::Http(_) => {
                ". hint: it has not answered at `ready.when` itself: each copy has to accept \
                 connections at that address, and to answer with a status below 400"
            }
        }
    }

    /// A copy that starts answers its readiness probe with a failure. It accepts connections at the
    /// same socket as the other copies, so it would answer their requests with failures, too. If
    /// others serve, it is stopped. A surge copy is not started again until recycling resumes.
    pub(crate) fn on_copy_fails(&mut self, now: Timestamp, id: WorkerId, status: u16) {
        let worker = self.state.workers.get(&id);
        let starts = worker.is_some_and(Worker::is_starting);
        let others_serve = self.state.workers.values().any(Worker::serves);
        let why = format!("{id} answered its readiness probe with status {status}");
        if !starts || !others_serve || self.state.service.is_stopping() {
            self.warn_once(format!("{id} fails"), || why);
            return;
        }
        if self.state.surge.raised().is_some() {
            let (run, signal) = (self.state.service.run(), fleet::ONE_FEWER);
            self.act(Action::SignalCommand { run, signal });
            self.state.surge.on_lower(now);
        }
        self.suspend(now, &why, false);
        let until = now.later(self.spec.stop.grace);
        self.drain_by_signal(now, id, Cause::Unready, until);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        servers::gunicorn,
        supervisor::{
            event::Event,
            input::{Ask, Input},
            spec::{Kind, Spec},
            test_service::Service,
        },
        units::{RequestId, Signal},
    };

    const NEW: WorkerId = WorkerId::FIRST.next().next();

    fn fleet_of_two(change: impl FnOnce(&mut Spec)) -> Service {
        Service::with_two(|spec| {
            spec.kind = Kind::Server(&fleet::PROFILE);
            spec.copies = Some(2);
            spec.recycle.surge = true;
            spec.stop.grace = Duration::from_secs(30);
            change(spec);
        })
    }

    /// A replacement is being started.
    fn replacing() -> Service {
        let mut service = fleet_of_two(|_| {});
        let (request, ask) = (RequestId(1), Ask::Recycle(WorkerId::FIRST));
        service.happens(10, Input::Asked { request, ask });
        service.seen(11, 13);
        service
    }

    /// The signals to the parent, and to workers.
    fn signals(actions: &[Action]) -> (Vec<Signal>, Vec<WorkerId>) {
        let (mut parent, mut workers) = (Vec::new(), Vec::new());
        for action in actions {
            if let Action::SignalCommand { signal, .. } = action {
                parent.push(*signal);
            } else if let Action::SignalWorker { worker, .. } = action {
                workers.push(*worker);
            }
        }
        (parent, workers)
    }

    #[test]
    fn a_replacement_that_answers_with_a_failure_is_stopped_and_recycling_is_suspended() {
        let mut service = replacing();
        let actions = service.happens(12, Input::CopyFails(NEW, 500));
        assert_eq!(signals(&actions), (vec![fleet::ONE_FEWER], vec![NEW]));
        let says_it = |why: &str| why.ends_with("with status 500");
        let suspended = |it: &Event| matches!(it, Event::Suspended { why, .. } if says_it(why));
        assert!(service.events.iter().any(suspended));
        assert!(service.decider.state.surge.raised().is_none());
    }

    #[test]
    fn a_copy_that_serves_or_is_the_first_is_not_stopped_for_its_answer() {
        let mut service = replacing();
        service.ready(12, NEW);
        let actions = service.happens(13, Input::CopyFails(NEW, 500));
        assert!(!signals(&actions).1.contains(&NEW));
        let mut service = Service::new(|spec| {
            spec.kind = Kind::Server(&fleet::PROFILE);
            spec.copies = Some(1);
        });
        service.seen(1, 11);
        let actions = service.happens(2, Input::CopyFails(WorkerId::FIRST, 500));
        assert_eq!(signals(&actions), (vec![], vec![]));
        assert!(service.warned("with status 500"));
    }

    #[test]
    fn the_warning_of_a_copy_that_is_not_ready_says_what_it_has_to_do() {
        let http = ReadyWhen::Http("http://a:80/".to_owned());
        for (when, hint, second) in [
            (ReadyWhen::Notify, "READY=1", 60),
            (http, "at `ready.when` itself", 60),
            (ReadyWhen::Auto, "is not ready after 20s", 20),
        ] {
            let mut service = fleet_of_two(|spec| spec.ready.when = when);
            service.seen(100, 13);
            service.happens(100 + second - 1, Input::Deadline);
            assert!(!service.warned("is not ready"));
            service.happens(100 + second, Input::Deadline);
            assert!(service.warned(hint), "{hint}");
        }
    }

    #[test]
    fn a_fleet_is_ready_when_a_copy_is_and_a_server_when_its_probe_is_answered() {
        for (kind, ready) in [(&fleet::PROFILE, true), (&gunicorn::PROFILE, false)] {
            let mut service = Service::new(|spec| {
                spec.kind = Kind::Server(kind);
                spec.ready.when = ReadyWhen::Delay(Duration::from_secs(50));
            });
            service.happens(3, Input::Deadline);
            assert!(!service.decider.state.service.is_ready());
            service.seen(3, 11);
            service.ready(4, WorkerId::FIRST);
            assert_eq!(service.decider.state.service.is_ready(), ready);
        }
    }
}
