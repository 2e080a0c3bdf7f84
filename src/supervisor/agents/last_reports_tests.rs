//! What is asked of a worker before it leaves for its memory.

use std::time::Duration;

use super::*;
use crate::{
    supervisor::{
        input::{AgentAnswer, Input},
        spec::{AgentLoad, Leaks, Limit},
        test_service::Service,
    },
    units::Size,
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
    // 80M a second: more than 4M in a quarter of a second. It reaches its ceiling after a second.
    let requests = requests_of(&mut service, |millis| 20 + millis * 80 / 1000);
    let left = time_of(&requests, "exit").expect("it leaves");
    let before = requests.iter().rfind(|(_, request)| *request == "open");
    assert!(
        before.is_none_or(|(opened, _)| opened + 250 < left),
        "{requests:?}"
    );
    assert!((31_000..31_200).contains(&left), "{requests:?}");
}

/// The first worker exits with a pending request for a report, which is withdrawn or not, and then
/// makes it. Returns whether the next worker may report.
fn reports_again(withdrawn: bool) -> bool {
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
    let now = Timestamp::ZERO.later(Duration::from_secs(33));
    service.decider.may_report(now)
}

#[test]
fn a_report_that_was_withdrawn_does_not_delay_the_next_one() {
    assert!(!reports_again(false));
    assert!(reports_again(true));
}

/// Whether a worker that leaks is traced, if no report is made before this time.
fn is_traced(report_after: u64) -> bool {
    let mut service = service(4);
    let after = Timestamp::ZERO.later(Duration::from_secs(report_after));
    service.decider.state.agents.report_after = after;
    let mut traced = false;
    // It would reach its ceiling at 60 s.
    for second in 30..58 {
        let memory = 20 + (second - 30) * 80 / 30;
        for action in service.sample_at_millis(second * 1000, memory) {
            let Action::AskAgent { worker, ask } = action else {
                continue;
            };
            traced |= matches!(ask, AgentAsk::Open { .. });
            let answer = match ask {
                AgentAsk::Base => AgentAnswer::Base { taken: true },
                AgentAsk::Open { .. } => AgentAnswer::Opened,
                AgentAsk::Collect | AgentAsk::Close | AgentAsk::Report { .. } => {
                    AgentAnswer::Closed
                }
            };
            service.answered(second * 1000 + 1, worker, answer);
        }
    }
    traced
}

#[test]
fn a_worker_is_traced_only_if_it_will_report() {
    assert!(is_traced(50));
    assert!(!is_traced(200));
}
