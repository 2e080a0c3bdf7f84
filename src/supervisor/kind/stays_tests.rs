//! Workers that must not be asked to leave.

use super::*;
use crate::{
    servers::{dramatiq, hypercorn, profile::Profile},
    supervisor::{
        action::{Action, Answer},
        input::{Ask, Input},
        spec::{Kind, Limit},
        test_service::Service,
    },
    units::{Bytes, RequestId, Signal, Size},
};

const FIRST: WorkerId = WorkerId::FIRST;

/// Two workers of a server, the first of which does or does not handle its signal.
fn server(profile: &'static Profile, handles: bool) -> Service {
    let mut service = Service::with_two(|spec| {
        spec.kind = Kind::Server(profile);
        spec.memory.ceiling = Limit::At(Size::Bytes(Bytes::mib(100)));
    });
    if !handles {
        service.happens(10, Input::LeavesBadly(FIRST));
    }
    service
}

/// The workers that get a signal.
fn signalled(actions: &[Action]) -> Vec<WorkerId> {
    let mut workers = Vec::new();
    for action in actions {
        if let Action::SignalWorker { worker, .. } = action {
            workers.push(*worker);
        }
    }
    workers
}

/// The first worker grows over its ceiling. Returns the workers that got a signal.
fn over_its_ceiling(service: &mut Service) -> Vec<WorkerId> {
    (30..60)
        .flat_map(|second| signalled(&service.sample_at_millis(second * 1000, 10 * second - 280)))
        .collect()
}

#[test]
fn a_worker_over_its_ceiling_is_asked_to_leave_only_if_its_server_survives_that() {
    let mut able = server(&hypercorn::PROFILE, true);
    assert_eq!(over_its_ceiling(&mut able), [FIRST]);
    for (profile, handles, hint) in [
        (&hypercorn::PROFILE, false, "drain, w1"),
        (&dramatiq::PROFILE, true, "dramatiq stops all its workers"),
    ] {
        let mut service = server(profile, handles);
        assert_eq!(over_its_ceiling(&mut service), []);
        assert!(service.warned(hint), "{:?}", service.events);
    }
}

#[test]
fn a_request_to_replace_a_worker_that_must_stay_is_refused() {
    for (ask, is_refused) in [
        (Ask::Recycle(FIRST), true),
        (Ask::Recycle(FIRST.next()), false),
        (Ask::RecycleAll, true),
        (Ask::Reload, true),
    ] {
        let mut service = server(&hypercorn::PROFILE, false);
        let request = RequestId(1);
        let actions = service.happens(31, Input::Asked { request, ask });
        let refused = actions.iter().any(|action| {
            matches!(action, Action::Reply { answer: Answer::Refused(why), .. }
                if why.contains("drain, w1"))
        });
        assert_eq!(refused, is_refused, "{actions:?}");
    }
}

#[test]
fn a_hangup_replaces_the_workers_of_a_server_that_would_stop_all_of_them_first() {
    let mut service = server(&hypercorn::PROFILE, true);
    let mut actions = service.happens(31, Input::Signalled(Signal::HUP));
    actions.extend(service.happens(32, Input::Deadline));
    assert_eq!(signalled(&actions), [FIRST]);
    let is_passed_on = |action: &Action| matches!(action, Action::SignalCommand { .. });
    assert!(!actions.iter().any(is_passed_on));
    let mut service = server(&hypercorn::PROFILE, false);
    service.happens(31, Input::Signalled(Signal::HUP));
    assert!(service.warned("the service is not reloaded"));
}
