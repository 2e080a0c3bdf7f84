//! Situations that are too rare for random seeds, written out by hand.

use std::time::Duration;

use supervise::{
    supervisor::{
        Supervisor,
        action::Action,
        input::Input,
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
fn a_worker_forked_while_its_server_stops_gets_its_own_stop_signal() {
    let (spec, scenario) = a_server();
    let now = |millis| Timestamp::default().later(Duration::from_millis(millis));
    let mut supervisor = Supervisor::new(spec, 1, now(0));
    let run = RunId(1);
    let worker = WorkerId::FIRST;
    let before = [
        Input::Machine(scenario.machine),
        Input::Available(scenario.available),
        Input::Started { run, pid: 10 },
        Input::WorkerSeen { run, pid: 11 },
        Input::Signalled(Signal::TERM),
        Input::BacklogEmpty { run },
    ];
    let stops_worker = |supervisor: &mut Supervisor, input| {
        supervisor.handle_input(now(5), input);
        let actions: Vec<_> = std::iter::from_fn(|| supervisor.poll_action()).collect();
        let signal = Signal::TERM;
        actions.contains(&Action::SignalWorker { worker, signal })
    };
    for input in before {
        assert!(!stops_worker(&mut supervisor, input));
    }
    assert!(stops_worker(&mut supervisor, Input::WorkerReady { worker }));
}

#[test]
fn a_worker_that_starts_while_the_backlog_drains_gets_no_stop_signal() {
    let (spec, scenario) = a_server();
    let now = Timestamp::default();
    let mut supervisor = Supervisor::new(spec, 1, now);
    let run = RunId(1);
    let worker = WorkerId::FIRST;
    let events = [
        Input::Machine(scenario.machine),
        Input::Available(scenario.available),
        Input::Started { run, pid: 10 },
        Input::WorkerSeen { run, pid: 11 },
        Input::Signalled(Signal::TERM),
        Input::WorkerReady { worker },
    ];
    for input in events {
        supervisor.handle_input(now, input);
    }
    let actions: Vec<_> = std::iter::from_fn(|| supervisor.poll_action()).collect();
    let signal = Signal::TERM;
    assert!(actions.contains(&Action::DrainBacklog { run }));
    assert!(!actions.contains(&Action::SignalCommand { run, signal }));
    // It serves the waiting connections. The server stops it when the server itself is stopped.
    assert!(!actions.contains(&Action::SignalWorker { worker, signal }));
}
