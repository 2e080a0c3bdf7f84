//! What is asked of a worker before it leaves for its memory: windows of tracing, and its last
//! report.

use std::{collections::BTreeSet, time::Duration};

use super::*;
use crate::{
    supervisor::{
        input::{AgentAnswer, Ask, Input},
        spec::{AgentLoad, Leaks, Limit},
        test_service::Service,
    },
    units::{RequestId, Signal, Size},
};

/// The worker that reaches its ceiling.
const OLD: WorkerId = WorkerId::FIRST;

/// Two workers with agents and a ceiling of 100M. The first one holds 20M, and was first sampled at
/// this second.
fn service(sampled_from: u64) -> Service {
    let mut service = Service::new(|spec| {
        spec.memory.ceiling = Limit::At(Size::Bytes(Bytes::mib(100)));
        spec.memory.gc_first = false;
        spec.recycle.min_age = Duration::from_secs(1);
        spec.stop.grace = Duration::from_secs(10);
        spec.agent.load = AgentLoad::On;
        spec.leaks.ask = Leaks::Auto;
    });
    for (worker, pid) in [(OLD, 11), (OLD.next(), 12)] {
        service.seen(1, pid);
        service.ready(2, worker);
        service.agent_found(3, worker);
    }
    for second in 4..30 {
        if second < sampled_from {
            service.happens(second, Input::Deadline);
        } else {
            service.sample(second, 20);
        }
    }
    service
}

/// The requests to the agent of the worker that reaches its ceiling at 30 s, and its request to
/// exit, each with its time in milliseconds. Each request is answered at once. The worker holds
/// `memory` after this many milliseconds.
fn requests_of(service: &mut Service, memory: impl Fn(u64) -> u64) -> Vec<(u64, &'static str)> {
    let mut requests = Vec::new();
    for millis in (30_000..31_500).step_by(10) {
        let mut actions = service.sample_at_millis(millis, memory(millis - 30_000));
        while let Some(action) = actions.pop() {
            if matches!(action, Action::SignalWorker { worker, .. } if worker == OLD) {
                requests.push((millis, "exit"));
            }
            let Action::AskAgent { worker: OLD, ask } = action else {
                continue;
            };
            let (request, answer) = match ask {
                AgentAsk::Base => ("base", Some(AgentAnswer::Base { taken: true })),
                AgentAsk::Open { .. } => ("open", Some(AgentAnswer::Opened)),
                AgentAsk::Close => ("close", Some(AgentAnswer::Closed)),
                AgentAsk::Collect => ("collect", Some(AgentAnswer::Busy)),
                AgentAsk::Report { .. } => ("report", None),
            };
            requests.push((millis, request));
            if let Some(answer) = answer {
                actions.extend(service.answered(millis, OLD, answer));
            }
        }
    }
    requests
}

fn time_of(requests: &[(u64, &str)], wanted: &str) -> Option<u64> {
    let found = requests.iter().find(|(_, request)| *request == wanted);
    found.map(|(millis, _)| *millis)
}

#[test]
fn the_last_requests_of_a_worker_are_traced_before_it_is_asked_to_exit() {
    let mut service = service(4);
    let requests = requests_of(&mut service, |_| 101);
    let [opened, reported, left] =
        ["open", "report", "exit"].map(|wanted| time_of(&requests, wanted));
    let opened = opened.expect("a window");
    assert_eq!((reported, left), (left, Some(opened + 250)), "{requests:?}");
    assert_eq!(time_of(&requests, "close"), None, "the report closes it");
}

#[test]
fn a_worker_that_grows_fast_leaves_without_a_last_window() {
    let mut service = service(29);
    // 80M a second: more than 4M in a quarter of a second. It leaves at 94M, after 0.9 s.
    let requests = requests_of(&mut service, |millis| 20 + millis * 80 / 1000);
    let left = time_of(&requests, "exit").expect("it leaves");
    let before = requests.iter().rfind(|(_, request)| *request == "open");
    assert!(
        before.is_none_or(|(opened, _)| opened + 250 < left),
        "{requests:?}"
    );
    assert!((30_900..31_000).contains(&left), "{requests:?}");
}

/// The first worker exits with a pending request for a report, which is withdrawn or not, and then
/// makes it.
fn after_a_report(withdrawn: bool) -> Service {
    let mut service = service(4);
    requests_of(&mut service, |_| 101);
    if withdrawn {
        service.decider.withdraw_last_reports();
    }
    let pending = service
        .decider
        .state
        .workers
        .get(&OLD)
        .and_then(last_report);
    let Some(Request::Report { report, cause, .. }) = pending else {
        panic!("no report is pending: {pending:?}");
    };
    let summary = String::new();
    let answer = AgentAnswer::Reported {
        report,
        cause,
        summary,
    };
    service.answered(32_000, OLD, answer);
    service
}

fn may_report(service: &Service) -> bool {
    let now = Timestamp::ZERO.later(Duration::from_secs(33));
    service.decider.may_report(now)
}

#[test]
fn a_report_that_was_withdrawn_does_not_delay_the_next_one() {
    assert!(!may_report(&after_a_report(false)));
    assert!(may_report(&after_a_report(true)));
}

#[test]
fn after_a_reload_a_report_may_be_made_at_once() {
    let reload = Input::Asked {
        request: RequestId(1),
        ask: Ask::Reload,
    };
    let signal = Input::Signalled(Signal::HUP);
    for input in [reload, signal] {
        let mut service = after_a_report(false);
        service.happens(33, input);
        assert!(may_report(&service));
    }
}

/// `leaks`: workers, the second from which each grows from 20M on, and the seconds after which it
/// would reach its ceiling. Returns which of them are traced in 55 s, if no report may be made
/// before `report_after`.
fn traced(leaks: &[(WorkerId, u64, u64)], report_after: u64) -> BTreeSet<WorkerId> {
    let mut service = service(4);
    let after = Timestamp::ZERO.later(Duration::from_secs(report_after));
    service.decider.state.agents.report_after = after;
    let mut traced = BTreeSet::new();
    for second in 4..55 {
        for &(worker, begun, lasts) in leaks {
            let millis = second * 1000;
            let memory = 20 + 80 * u64::saturating_sub(second, begun) / lasts;
            for action in service.sample_of(worker, millis, (memory, None)) {
                let Action::AskAgent { worker, ask } = action else {
                    continue;
                };
                let answer = match ask {
                    AgentAsk::Base => AgentAnswer::Base { taken: true },
                    AgentAsk::Open { .. } => AgentAnswer::Opened,
                    AgentAsk::Collect | AgentAsk::Close | AgentAsk::Report { .. } => {
                        AgentAnswer::Closed
                    }
                };
                if answer == AgentAnswer::Opened {
                    traced.insert(worker);
                }
                service.answered(millis + 1, worker, answer);
            }
        }
    }
    traced
}

#[test]
fn a_worker_is_traced_only_if_it_will_report() {
    let leak = [(OLD, 30, 30)];
    assert_eq!(traced(&leak, 0), BTreeSet::from([OLD]));
    assert_eq!(traced(&leak, 200), BTreeSet::new());
    // It will report, but not soon.
    let slow = [(OLD, 30, 40)];
    assert_eq!(traced(&slow, 0), BTreeSet::from([OLD]));
    assert_eq!(traced(&slow, 68), BTreeSet::new());
}

#[test]
fn of_two_workers_that_leave_at_about_the_same_time_one_is_traced() {
    let other = OLD.next();
    let together = [(OLD, 30, 30), (other, 30, 30)];
    assert_eq!(traced(&together, 0), BTreeSet::from([OLD]));
    let apart = [(OLD, 4, 300), (other, 30, 30)];
    assert!(traced(&apart, 0).contains(&other));
}

/// The first worker reaches its ceiling at 30 s. The other one is prepared for a report and reaches
/// its own `later` seconds after that. Returns whether the first one is asked for a report.
fn reports_before_another(later: u64) -> bool {
    let mut service = service(4);
    let other = OLD.next();
    for second in 4..30 {
        let memory = 20 + (second - 4) * 80 / (26 + later);
        for action in service.sample_of(other, second * 1000, (memory, None)) {
            if matches!(
                action,
                Action::AskAgent {
                    ask: AgentAsk::Base,
                    ..
                }
            ) {
                let taken = AgentAnswer::Base { taken: true };
                service.answered(second * 1000 + 1, other, taken);
            }
        }
    }
    let worker = &service.decider.state.workers[&other];
    assert!(worker.tracing().has_begun());
    let requests = requests_of(&mut service, |_| 101);
    assert!(time_of(&requests, "exit").is_some(), "{requests:?}");
    time_of(&requests, "report").is_some()
}

#[test]
fn a_worker_leaves_the_report_to_one_that_is_prepared_and_leaves_soon() {
    assert!(!reports_before_another(10));
    assert!(reports_before_another(120));
}
