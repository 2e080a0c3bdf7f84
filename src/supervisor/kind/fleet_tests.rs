//! A program that gets listening sockets, and becomes a fleet of one copy.

use super::*;
use crate::{
    servers::fleet,
    supervisor::{
        cause::Cause,
        event::{Event, Who},
        input::{Ask, Ended, Input, Oom},
        spec::{Kind, RestartWhen, Spec},
        test_service::{RUN, Service},
    },
    units::{RequestId, RunId, Signal, WorkerId},
};

const COMMAND: WorkerId = WorkerId::FIRST;
const COPY: WorkerId = COMMAND.next();

fn program(change: impl FnOnce(&mut Spec)) -> Service {
    let mut service = Service::new(|spec| {
        spec.kind = Kind::Single;
        spec.kind_is_guessed = true;
        spec.overlap = true;
        spec.recycle.surge = true;
        spec.restart.when = RestartWhen::OnFailure;
        spec.stop.grace = Duration::from_secs(30);
        change(spec);
    });
    service.ready(1, COMMAND);
    service
}

/// The program was seen to accept connections, and its number of workers has settled.
fn accepting(change: impl FnOnce(&mut Spec)) -> Service {
    let mut service = program(change);
    let server = &fleet::PROFILE;
    service.happens(2, Input::ServerFound { pid: 7, server });
    service.seen(2, 11);
    service.ready(2, COPY);
    for second in 3..8 {
        service.happens(second, Input::Deadline);
    }
    service
}

fn recycle(service: &mut Service, second: u64, worker: WorkerId) -> Vec<Action> {
    let (request, ask) = (RequestId(1), Ask::Recycle(worker));
    service.happens(second, Input::Asked { request, ask })
}

/// The signals to the command, and to workers.
fn signals(actions: &[Action]) -> Vec<(&'static str, Signal)> {
    let signal = |action: &Action| {
        if let Action::SignalCommand { signal, .. } = action {
            return Some(("the command", *signal));
        }
        if let Action::SignalWorker { signal, .. } = action {
            return Some(("a worker", *signal));
        }
        None
    };
    actions.iter().filter_map(signal).collect()
}

fn ended(how: Ended) -> Input {
    Input::CommandEnded {
        run: RUN,
        ended: how,
        oom: Oom::No,
        successor: None,
    }
}

/// The number of the start that follows the end of the command; `None`: the supervisor exits.
fn next_start(service: &mut Service, second: u64) -> Option<RunId> {
    let mut actions = service.happens(second, Input::RunOver { run: RUN });
    for later in second + 1..second + 5 {
        actions.extend(service.happens(later, Input::Deadline));
    }
    actions.iter().find_map(|action| {
        if let Action::Start { run, .. } = action {
            return Some(*run);
        }
        None
    })
}

#[test]
fn the_only_copy_is_told_to_stop_when_its_replacement_is_ready() {
    let mut service = accepting(|_| {});
    let begun = recycle(&mut service, 10, COPY);
    assert_eq!(signals(&begun), [("the command", Signal::TTIN)]);
    assert!(signals(&service.seen(11, 12)).is_empty());
    let ready = Input::WorkerReady {
        worker: COPY.next(),
    };
    let replaced = service.happens(12, ready);
    assert_eq!(signals(&replaced), [("the command", Signal::TTOU)]);
}

#[test]
fn without_room_for_two_copies_the_program_is_stopped_and_started_again() {
    let mut service = accepting(|_| {});
    service.sample_of(COPY, 8000, (1500, None));
    service.sample_of(COPY, 9000, (1500, None));
    let stopped = recycle(&mut service, 10, COPY);
    assert_eq!(signals(&stopped), [("the command", Signal::TERM)]);
    assert!(service.warned("has no room for one more worker"));
    service.happens(11, ended(Ended::Exit(0)));
    assert_eq!(next_start(&mut service, 11), Some(RunId(2)));
}

#[test]
fn the_end_of_the_only_copy_is_the_end_of_the_program_and_is_recorded_once() {
    for (status, next) in [(1, Some(RunId(2))), (0, None)] {
        let mut service = accepting(|_| {});
        let how = Ended::Exit(status);
        // The two inputs may come in either order.
        service.happens(20, ended(how));
        let copy = Input::WorkerEnded {
            worker: COPY,
            ended: how,
            oom: Oom::No,
            peak: None,
        };
        service.happens(20, copy);
        assert_eq!(next_start(&mut service, 20), next, "{status}");
        let ends = service.decider.state.record.ends();
        let ends: Vec<_> = ends.iter().map(|end| (end.who, end.cause)).collect();
        assert_eq!(ends, [(Who::Worker(COPY), Cause::Exit(status))]);
    }
}

#[test]
fn a_program_that_does_not_use_its_sockets_is_told_after_twenty_seconds() {
    let mut service = program(|_| {});
    service.happens(19, Input::Deadline);
    assert!(!service.warned("was not seen to accept"));
    service.happens(20, Input::Deadline);
    assert!(service.warned("was not seen to accept"));
    assert_eq!(
        signals(&recycle(&mut service, 21, COMMAND)),
        [("the command", Signal::TERM)]
    );
}

#[test]
fn a_program_that_accepts_in_time_or_gets_no_socket_causes_no_warning() {
    for mut service in [accepting(|_| {}), program(|spec| spec.overlap = false)] {
        service.happens(30, Input::Deadline);
        assert!(!service.warned("was not seen to accept"));
    }
}

#[test]
fn a_program_that_may_become_a_fleet_gets_no_signal_that_starts_a_second_copy() {
    for (signal, is_passed) in [(Signal::TTIN, false), (Signal::USR1, true)] {
        let mut service = program(|_| {});
        let actions = service.happens(2, Input::Signalled(signal));
        assert_eq!(!signals(&actions).is_empty(), is_passed, "{signal}");
    }
}

#[test]
fn a_program_that_becomes_a_fleet_is_announced_and_starts_as_a_program_again() {
    let mut service = accepting(|_| {});
    let is_found = |event: &Event| matches!(event, Event::ServerFound { .. });
    assert_eq!(service.events.iter().filter(|it| is_found(it)).count(), 1);
    assert!(service.decider.is_fleet_of_one());
    service.happens(20, ended(Ended::Exit(1)));
    assert_eq!(next_start(&mut service, 20), Some(RunId(2)));
    assert!(service.decider.is_whole_program());
}
