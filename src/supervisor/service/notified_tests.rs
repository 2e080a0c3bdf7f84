//! Messages that ask for more time.

use super::*;
use crate::supervisor::{
    event_format::Level,
    input::{Ask, Input},
    spec::{Kind, Spec},
    test_service::{RUN, Service},
};
use crate::units::{RequestId, Signal};

const FIRST: WorkerId = WorkerId::FIRST;

fn limits(spec: &mut Spec) {
    spec.stop.grace = Duration::from_secs(10);
    spec.stop.extend_max = Duration::from_secs(50);
}

/// A single program that is ready.
fn program() -> Service {
    let mut service = Service::new(|spec| {
        limits(spec);
        spec.kind = Kind::Single;
    });
    service.happens(1, Input::ServiceReady { run: RUN });
    service
}

/// A message that asks for this many seconds.
fn asks(worker: Option<WorkerId>, seconds: u64) -> Input {
    Input::Notified(Notification {
        run: RUN,
        worker,
        status: None,
        extend: Some(Duration::from_secs(seconds)),
    })
}

fn kills(actions: &[Action]) -> bool {
    let kill =
        |action: &Action| matches!(action, Action::KillRun { .. } | Action::KillWorker { .. });
    actions.iter().any(kill)
}

/// The seconds that the service manager is asked for.
fn passed_on(actions: &[Action]) -> Vec<u64> {
    let seconds = actions.iter().filter_map(|action| {
        let Action::Notify(Notice::Extend(by)) = action else {
            return None;
        };
        Some(by.as_secs())
    });
    seconds.collect()
}

/// The seconds and `cut` of each event.
fn told(service: &Service) -> Vec<(u64, bool)> {
    let told = service.events.iter().filter_map(|event| {
        let Event::StopExtended(it) = event else {
            return None;
        };
        Some((it.time.as_secs(), it.cut))
    });
    told.collect()
}

#[test]
fn a_program_that_asks_for_more_time_is_killed_when_that_is_over() {
    let mut service = program();
    service.happens(5, Input::Signalled(Signal::TERM));
    let actions = service.happens(14, asks(Some(FIRST), 20));
    assert_eq!(passed_on(&actions), [22], "the service manager waits, too");
    assert!(!kills(&service.happens(15, Input::Deadline)));
    assert!(!kills(&service.happens(33, Input::Deadline)));
    let shown = service
        .decider
        .snapshot(Timestamp::default().later(Duration::from_secs(30)));
    assert_eq!(shown.killed_in, Some(Duration::from_secs(4)));
    assert!(kills(&service.happens(34, Input::Deadline)));
}

#[test]
fn a_message_never_shortens_the_time_that_is_left() {
    let mut service = program();
    service.happens(5, Input::Signalled(Signal::TERM));
    service.happens(6, asks(Some(FIRST), 1));
    assert!(!kills(&service.happens(14, Input::Deadline)));
    assert!(kills(&service.happens(15, Input::Deadline)));
}

#[test]
fn a_program_gets_no_more_than_the_maximum_and_that_is_told_once() {
    let mut service = program();
    service.happens(5, Input::Signalled(Signal::TERM));
    for second in 6..65 {
        let actions = service.happens(second, asks(Some(FIRST), 30));
        assert!(!kills(&actions), "{second}");
    }
    assert!(kills(&service.happens(65, Input::Deadline)));
    assert_eq!(told(&service), [(30, false), (29, true)]);
    let is_warning =
        |event: &&Event| matches!(event, Event::StopExtended(_)) && event.level() == Level::Warn;
    assert_eq!(service.events.iter().filter(is_warning).count(), 1);
}

#[test]
fn a_worker_that_drains_gets_more_time_and_the_service_manager_is_not_asked() {
    let mut service = program();
    let (request, ask) = (RequestId(1), Ask::Recycle(FIRST));
    service.happens(5, Input::Asked { request, ask });
    let actions = service.happens(6, asks(Some(FIRST), 30));
    assert_eq!(passed_on(&actions), Vec::<u64>::new());
    assert_eq!(told(&service), [(30, false)]);
    assert!(!kills(&service.happens(35, Input::Deadline)));
    assert!(kills(&service.happens(36, Input::Deadline)));
}

#[test]
fn a_stop_waits_for_a_worker_of_a_server_that_asks_for_more_time() {
    let mut service = Service::with_two(limits);
    service.happens(20, Input::Signalled(Signal::TERM));
    service.happens(21, asks(Some(FIRST.next()), 30));
    assert!(!kills(&service.happens(50, Input::Deadline)));
    assert!(kills(&service.happens(51, Input::Deadline)));
}

#[test]
fn a_reload_that_takes_longer_is_passed_on() {
    let mut service = Service::with_two(limits);
    let (request, ask) = (RequestId(1), Ask::Reload);
    service.happens(20, Input::Asked { request, ask });
    let actions = service.happens(21, asks(Some(FIRST), 30));
    assert_eq!(passed_on(&actions), [2 * (10 + 60) + 30]);
}

#[test]
fn a_program_that_serves_gets_no_time_by_a_message() {
    let mut service = program();
    let actions = service.happens(2, asks(Some(FIRST), 30));
    assert_eq!(passed_on(&actions), Vec::<u64>::new());
    service.happens(5, Input::Signalled(Signal::TERM));
    assert!(kills(&service.happens(15, Input::Deadline)));
}

#[test]
fn a_start_that_takes_longer_is_passed_on() {
    let mut service = Service::new(limits);
    assert_eq!(passed_on(&service.happens(2, asks(None, 30))), [30]);
}

#[test]
fn what_a_worker_says_is_shown_until_it_says_nothing() {
    let mut service = program();
    let says = |text: &str| {
        Input::Notified(Notification {
            run: RUN,
            worker: Some(FIRST),
            status: Some(text.to_owned()),
            extend: None,
        })
    };
    let shown = |service: &Service| {
        let snapshot = service.decider.snapshot(Timestamp::default());
        snapshot.workers[0].status_text.clone()
    };
    service.happens(2, says("writing batch 7"));
    assert_eq!(shown(&service).as_deref(), Some("writing batch 7"));
    service.happens(3, says(""));
    assert_eq!(shown(&service), None);
}
