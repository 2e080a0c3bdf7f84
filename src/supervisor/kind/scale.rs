//! `supervise scale N`: a server is asked for one worker more, or one fewer, until it has N.

use std::time::Duration;

use crate::{
    supervisor::{
        Supervisor,
        action::{Action, Answer},
    },
    units::{RequestId, Timestamp},
};

/// The server may take two equal signals for one if they come within 200 ms.
const SPACING: Duration = Duration::from_millis(300);
/// How often the difference is made up for. An operator may change the number at the same time.
const ROUNDS: u32 = 3;

/// A change of the number of workers that is in progress.
#[derive(Debug)]
pub(crate) struct Scaling {
    /// `None`: the supervisor itself has chosen the number.
    request: Option<RequestId>,
    goal: u32,
    /// Signals that are still to be sent, for one worker more each or, if negative, one fewer.
    left: i64,
    /// No signal is sent before this time.
    next: Timestamp,
    rounds: u32,
}

impl Scaling {
    pub(crate) const fn to(goal: u32, request: Option<RequestId>, now: Timestamp) -> Self {
        Self {
            request,
            goal,
            left: 0,
            next: now,
            rounds: 0,
        }
    }

    pub(crate) const fn request(&self) -> Option<RequestId> {
        self.request
    }
}

impl Supervisor {
    /// An operator wants this number of workers.
    pub(crate) fn on_scale_asked(&mut self, now: Timestamp, request: RequestId, goal: u32) {
        if let Some(why) = self.refuses_scale(goal) {
            self.refuse(request, &why);
            return;
        }
        self.operator.scale(Scaling::to(goal, Some(request), now));
        self.plan.touch();
    }

    fn refuses_scale(&self, goal: u32) -> Option<String> {
        let Some(profile) = self.profile() else {
            return Some("the command is one worker. hint: `--copies` starts several".to_owned());
        };
        if profile.raise().is_none() {
            let name = profile.name;
            return Some(format!(
                "{name} cannot change its number of workers while it runs"
            ));
        }
        if self.state.service.is_stopping() {
            return Some("the service is stopping".to_owned());
        }
        if self.operator.is_scaling() {
            return Some("the number of workers is being changed already".to_owned());
        }
        if self.missing(goal) > 0 && self.state.starts.is_suspended() {
            return Some("the application cannot start at the moment".to_owned());
        }
        None
    }

    /// The number of workers that are missing; negative if there are too many.
    fn missing(&self, goal: u32) -> i64 {
        let wanted = self.state.surge.wanted().unwrap_or(goal);
        i64::from(goal) - i64::from(wanted)
    }

    /// Sends the next signal if it is due. Answers when all workers serve.
    pub(crate) fn continue_scaling(&mut self, now: Timestamp) {
        let (Some(mut scaling), Some(profile)) = (self.operator.take_scaling(), self.profile())
        else {
            return;
        };
        // The number of workers is known only when it has settled.
        if scaling.left == 0 && self.state.surge.is_calm() {
            scaling.left = self.missing(scaling.goal);
            scaling.rounds += u32::from(scaling.left != 0);
            let (request, goal) = (scaling.request, scaling.goal);
            if scaling.left == 0 && self.has_all_workers() {
                let answer = Answer::Done(format!("the number of workers is {goal}"));
                if let Some(request) = request {
                    self.act(Action::Reply { request, answer });
                }
                return;
            }
            if scaling.rounds > ROUNDS {
                if let Some(request) = request {
                    self.refuse(request, "the server does not keep this number of workers");
                }
                return;
            }
        }
        let signal = if scaling.left > 0 {
            profile.raise()
        } else {
            profile.lower()
        };
        if let Some(signal) = signal.filter(|_| scaling.left != 0) {
            if now >= scaling.next {
                let run = self.state.service.run();
                self.act(Action::SignalCommand { run, signal });
                self.on_server_signal(now, signal);
                scaling.left -= scaling.left.signum();
                scaling.next = now.later(SPACING);
            }
            self.wake_at(now, scaling.next);
        }
        self.operator.scale(scaling);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        servers::hypercorn,
        supervisor::{
            input::{Ask, Ended, Input, Oom, Stop},
            spec::Kind,
            test_service::{RUN, Service},
        },
        units::{Signal, WorkerId},
    };

    fn ask(goal: u32) -> Input {
        let (request, ask) = (RequestId(1), Ask::Scale(goal));
        Input::Asked { request, ask }
    }

    /// The signals to the server and the answers, in words.
    fn said(actions: &[Action]) -> Vec<String> {
        let mut said = Vec::new();
        for action in actions {
            if let Action::SignalCommand { signal, .. } = action {
                said.push(signal.to_string());
            } else if let Action::Reply { answer, .. } = action {
                said.push(format!("{answer:?}"));
            }
        }
        said
    }

    #[test]
    fn the_server_gets_its_signals_one_after_the_other_and_the_answer_comes_last() {
        let mut service = Service::with_two(|_| {});
        let mut all = said(&service.happens_at(10_000, ask(4)));
        assert_eq!(all, ["TTIN"]);
        all = said(&service.happens_at(10_200, Input::Deadline));
        assert_eq!(all, [""; 0]);
        all = said(&service.happens_at(10_300, Input::Deadline));
        assert_eq!(all, ["TTIN"]);
        let mut id = WorkerId::FIRST.next();
        for pid in [13, 14] {
            id = id.next();
            service.seen(11, pid);
            service.ready(12, id);
        }
        let late = (13..20).flat_map(|second| said(&service.happens(second, Input::Deadline)));
        let late: Vec<_> = late.collect();
        assert_eq!(late, [r#"Done("the number of workers is 4")"#]);
    }

    #[test]
    fn while_the_number_changes_no_upgrade_begins_and_a_stop_refuses_the_rest() {
        let mut service = Service::with_two(|_| {});
        service.happens(10, ask(3));
        let mut another = |second, ask| {
            let request = RequestId(2);
            said(&service.happens(second, Input::Asked { request, ask })).concat()
        };
        let refused = another(11, Ask::Upgrade);
        assert!(refused.contains("in progress"), "{refused}");
        another(12, Ask::Stop(Stop::Graceful));
        let run = RUN;
        let ended = Input::CommandEnded {
            run,
            ended: Ended::Exit(0),
            oom: Oom::No,
            successor: None,
        };
        let mut all = said(&service.happens(13, ended));
        all.extend(said(&service.happens(13, Input::RunOver { run })));
        assert!(all.concat().contains("Refused"), "{all:?}");
    }

    #[test]
    fn a_number_that_is_there_already_is_answered_at_once() {
        let mut service = Service::with_two(|_| {});
        let all = said(&service.happens(10, ask(2)));
        assert_eq!(all, [r#"Done("the number of workers is 2")"#]);
    }

    #[test]
    fn a_server_without_such_signals_is_not_scaled() {
        let mut service = Service::with_two(|spec| spec.kind = Kind::Server(&hypercorn::PROFILE));
        let all = said(&service.happens(10, ask(3)));
        assert!(all.concat().contains("hypercorn cannot change"), "{all:?}");
        let signal = Input::Signalled(Signal::TTIN);
        assert_eq!(said(&service.happens(11, signal)), [""; 0]);
        assert!(service.warned("TTIN is not passed on"));
    }
}
