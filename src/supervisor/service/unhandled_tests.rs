//! Programs that end at the stop signal without handling it.

use std::time::Duration;

use crate::supervisor::{
    input::{Ask, Ended, Input, Oom},
    spec::{Kind, RestartWhen, Spec},
    test_service::{RUN, Service},
};
use crate::units::{RequestId, Signal, WorkerId};

const FIRST: WorkerId = WorkerId::FIRST;
const HINT: &str = "w1 does not handle TERM";

/// A single program that is ready.
fn program(change: impl FnOnce(&mut Spec)) -> Service {
    let mut service = Service::new(|spec| {
        spec.stop.grace = Duration::from_secs(10);
        spec.kind = Kind::Single;
        change(spec);
    });
    service.happens(1, Input::ServiceReady { run: RUN });
    service
}

fn ends(service: &mut Service, second: u64, signal: Signal) {
    let ended = Input::WorkerEnded {
        worker: FIRST,
        ended: Ended::Signal(signal),
        oom: Oom::No,
        peak: None,
    };
    service.happens(second, ended);
}

#[test]
fn a_job_that_dies_of_the_stop_signal_is_told_with_a_hint() {
    let mut service = program(|spec| spec.restart.when = RestartWhen::Never);
    service.happens(5, Input::Signalled(Signal::TERM));
    service.happens(5, Input::LeavesBadly(FIRST));
    ends(&mut service, 5, Signal::TERM);
    assert!(service.warned(HINT));
    assert!(service.warned("`--stop-signal`"));
}

#[test]
fn a_program_that_is_recycled_and_dies_of_the_stop_signal_is_told_with_a_hint() {
    let mut service = program(|_| {});
    let (request, ask) = (RequestId(1), Ask::Recycle(FIRST));
    service.happens(5, Input::Asked { request, ask });
    service.happens(5, Input::LeavesBadly(FIRST));
    ends(&mut service, 5, Signal::TERM);
    assert!(service.warned(HINT));
}

#[test]
fn a_program_that_handles_the_stop_signal_and_then_ends_by_it_gives_no_warning() {
    let mut service = program(|_| {});
    service.happens(5, Input::Signalled(Signal::TERM));
    ends(&mut service, 6, Signal::TERM);
    assert!(!service.warned(HINT));
}

#[test]
fn a_program_that_another_process_ends_gives_no_warning() {
    let mut service = program(|_| {});
    service.happens(5, Input::LeavesBadly(FIRST));
    ends(&mut service, 5, Signal::TERM);
    assert!(!service.warned(HINT));
    let mut killed = program(|_| {});
    killed.happens(5, Input::Signalled(Signal::TERM));
    killed.happens(5, Input::LeavesBadly(FIRST));
    ends(&mut killed, 15, Signal::KILL);
    assert!(!killed.warned(HINT));
}
