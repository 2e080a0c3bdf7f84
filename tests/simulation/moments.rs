//! Moments that are too rare to wait for by seed, played by hand.

use std::time::Duration;

use supervise::{
    supervisor::{
        Supervisor,
        action::Action,
        event::Event,
        spec::{Kind, Spec},
    },
    units::{RunId, Signal, Timestamp, WorkerId},
};

use crate::{chance::Chance, scenario::Scenario};

fn a_server() -> (Spec, Scenario) {
    let mut seeds = (0..).map(|seed| Scenario::new(&mut Chance::new(seed)));
    let scenario = seeds
        .find(|scenario| matches!(scenario.spec.kind, Kind::Server(_)))
        .unwrap();
    (scenario.spec.clone(), scenario)
}

#[test]
fn a_worker_that_was_forked_as_its_server_was_told_to_stop_is_told_itself() {
    let (spec, scenario) = a_server();
    let now = |millis| Timestamp::default().later(Duration::from_millis(millis));
    let mut supervisor = Supervisor::new(spec, 1, now(0));
    let run = RunId(1);
    let worker = WorkerId::FIRST;
    let before = [
        Event::Machine(scenario.machine),
        Event::Available(scenario.available),
        Event::Started { run, pid: 10 },
        Event::WorkerSeen { run, pid: 11 },
        Event::Signalled(Signal::TERM),
        Event::BacklogEmpty { run },
    ];
    let told = |supervisor: &mut Supervisor, event| {
        supervisor.handle_event(now(5), event);
        let actions: Vec<_> = std::iter::from_fn(|| supervisor.poll_action()).collect();
        let signal = Signal::TERM;
        actions.contains(&Action::SignalWorker { worker, signal })
    };
    for event in before {
        assert!(!told(&mut supervisor, event));
    }
    assert!(told(&mut supervisor, Event::WorkerReady { worker }));
}

#[test]
fn a_worker_that_comes_while_others_are_still_let_in_is_not_told_to_go() {
    let (spec, scenario) = a_server();
    let now = Timestamp::default();
    let mut supervisor = Supervisor::new(spec, 1, now);
    let run = RunId(1);
    let worker = WorkerId::FIRST;
    let events = [
        Event::Machine(scenario.machine),
        Event::Available(scenario.available),
        Event::Started { run, pid: 10 },
        Event::WorkerSeen { run, pid: 11 },
        Event::Signalled(Signal::TERM),
        Event::WorkerReady { worker },
    ];
    for event in events {
        supervisor.handle_event(now, event);
    }
    let actions: Vec<_> = std::iter::from_fn(|| supervisor.poll_action()).collect();
    let signal = Signal::TERM;
    assert!(actions.contains(&Action::DrainBacklog { run }));
    assert!(!actions.contains(&Action::SignalCommand { run, signal }));
    // It has those to serve that wait; its server tells it when it is told itself.
    assert!(!actions.contains(&Action::SignalWorker { worker, signal }));
}
