//! A command that is one worker, and turns out to be a server.

use std::time::Duration;

use super::*;
use crate::{
    servers::uvicorn,
    supervisor::{
        input::{Ask, Ended, Exact, Input, Oom, Sample},
        spec::{Limit, Spec},
        test_service::{RUN, Service},
    },
    units::{Bytes, RequestId, Size},
};

const COMMAND: WorkerId = WorkerId::FIRST;
const CEILING: u64 = 100;

fn service(change: impl FnOnce(&mut Spec)) -> Service {
    let mut service = Service::new(|spec| {
        spec.kind = Kind::Single;
        spec.kind_is_guessed = true;
        spec.memory.ceiling = Limit::At(Size::Bytes(Bytes::mib(CEILING)));
        spec.memory.cap = Limit::Auto;
        change(spec);
    });
    service.happens(3, Input::WorkerReady { worker: COMMAND });
    service
}

fn server_found(service: &mut Service, second: u64) -> Vec<Action> {
    let server = &uvicorn::PROFILE;
    service.happens(second, Input::ServerFound { pid: 7, server })
}

/// A sample of the command with this many processes, each of `mebibytes`.
fn sample(service: &mut Service, second: u64, (processes, mebibytes): (u32, u64)) -> Vec<Action> {
    let memory = Bytes::mib(mebibytes * u64::from(processes));
    let sample = Sample {
        at: Timestamp::default().later(Duration::from_secs(second)),
        rss: memory,
        anon: memory,
        exact: Some(Exact {
            private: memory,
            anon: memory,
            pss: memory,
            ..Exact::default()
        }),
        processes,
        ..Sample::default()
    };
    let worker = COMMAND;
    service.happens(second, Input::Sampled { worker, sample })
}

/// The last cap that the kernel is to enforce for the command.
fn cap_of(actions: &[Action]) -> Option<Option<Bytes>> {
    actions.iter().rev().find_map(|action| {
        let Action::Cap {
            worker: COMMAND,
            cap,
        } = action
        else {
            return None;
        };
        Some(*cap)
    })
}

#[test]
fn the_workers_of_a_server_that_is_found_are_recycled_one_by_one() {
    let mut service = service(|_| {});
    let actions = server_found(&mut service, 5);
    let expected = Action::TreatAsServer {
        worker: COMMAND,
        server: &uvicorn::PROFILE,
    };
    assert!(actions.contains(&expected), "{actions:?}");
    assert_eq!(service.decider.kind_name(), "server");
    assert!(service.decider.state.workers.get(&COMMAND).is_none());
    let adopted = service.happens(6, Input::WorkerSeen { run: RUN, pid: 11 });
    let is_adopted = |action: &Action| matches!(action, Action::Adopt { pid: 11, .. });
    assert!(adopted.iter().any(is_adopted), "{adopted:?}");
    let handed = service.decider.hand_over();
    assert_eq!(handed.server_found(), Some(&uvicorn::PROFILE));
}

#[test]
fn a_command_that_starts_again_is_one_worker_until_its_server_is_found_again() {
    let mut service = service(|_| {});
    server_found(&mut service, 5);
    let ended = Input::CommandEnded {
        run: RUN,
        ended: Ended::Exit(1),
        oom: Oom::No,
        successor: None,
    };
    service.happens(6, ended);
    let mut actions = service.happens(6, Input::RunOver { run: RUN });
    for second in 7..20 {
        actions.extend(service.happens(second, Input::Deadline));
    }
    let starts = |action: &Action| {
        matches!(
            action,
            Action::Start {
                worker: Some(_),
                ..
            }
        )
    };
    assert!(actions.iter().any(starts), "{actions:?}");
    assert_eq!(service.decider.kind_name(), "fleet");
}

#[test]
fn a_command_that_leaves_stays_one_worker() {
    let mut service = service(|_| {});
    service.happens(
        4,
        Input::Asked {
            request: RequestId(1),
            ask: Ask::Recycle(COMMAND),
        },
    );
    server_found(&mut service, 5);
    assert_eq!(service.decider.kind_name(), "fleet");
}

#[test]
fn a_tree_that_starts_is_not_limited_by_a_ceiling_that_was_perhaps_meant_for_its_workers() {
    let mut service = service(|_| {});
    sample(&mut service, 4, (1, 30));
    let grown = sample(&mut service, 20, (4, 20));
    assert_eq!(cap_of(&grown), Some(None), "the cap is lifted");
    let later = sample(&mut service, 70, (4, 20));
    let cap = Bytes::mib(2 * CEILING);
    assert_eq!(cap_of(&later), Some(Some(cap)), "it is no server");
    for second in [100, 101] {
        sample(&mut service, second, (4, 60));
    }
    assert!(service.due(Cause::Ceiling), "it has grown since");
}

/// The last cap of the command after it has been a tree of 240M for two minutes.
fn cap_of_tree(service: &mut Service) -> Option<Bytes> {
    sample(service, 4, (1, 30));
    let mut cap = None;
    for second in 20..140 {
        let actions = sample(service, second, (4, 60));
        let listed = Action::ListProcesses { worker: COMMAND };
        if actions.contains(&listed) {
            let largest = Vec::new();
            service.happens(second, Input::ProcessesListed(COMMAND, largest));
        }
        let derived = Action::Cap {
            worker: COMMAND,
            cap: Some(Bytes::mib(2 * CEILING)),
        };
        let is_capped = service.decider.spec().kind_is_guessed && actions.contains(&derived);
        assert!(!is_capped, "{second}: {actions:?}");
        cap = cap_of(&actions).unwrap_or(cap);
    }
    cap
}

#[test]
fn a_tree_that_needs_more_than_a_ceiling_meant_for_one_process_is_neither_recycled_nor_capped() {
    let mut service = service(|_| {});
    let cap = cap_of_tree(&mut service);
    let budget = Bytes::mib(2000);
    assert_eq!(cap, Some(budget));
    assert!(!service.due(Cause::Ceiling));
    let shared = |event: &&Event| matches!(event, Event::CeilingShared(_));
    let told: Vec<_> = service.events.iter().filter(shared).collect();
    let [Event::CeilingShared(shared)] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!((shared.processes, shared.memory), (4, Bytes::mib(240)));
    assert!(shared.guessed);
    let warned = |event: &&Event| matches!(event, Event::Warning(_));
    assert_eq!(service.events.iter().filter(warned).count(), 0);
    // The next start is not killed at a cap that is derived from that ceiling, either.
    let limits = service.decider.snapshot(Timestamp::default()).limits;
    assert_eq!(limits.cap.bytes, Some(budget));
    assert!(limits.ceiling.from.contains("several processes"));
}

#[test]
fn a_tree_that_grows_from_its_start_on_is_recycled_only_close_to_the_budget() {
    let mut service = service(|_| {});
    sample(&mut service, 4, (1, 30));
    for second in 20..70 {
        sample(&mut service, second, (4, 5 * (second - 10)));
    }
    assert!(!service.due(Cause::Ceiling), "1180M of 2000M");
    for second in 70..90 {
        sample(&mut service, second, (4, 5 * (second - 10)));
    }
    assert!(service.due(Cause::Ceiling));
}

#[test]
fn a_ceiling_that_is_said_to_be_for_the_whole_tree_applies_to_it() {
    let mut service = service(|spec| spec.kind_is_guessed = false);
    cap_of_tree(&mut service);
    assert!(service.due(Cause::Ceiling));
}

#[test]
fn a_cap_that_is_given_holds_for_a_tree_that_starts() {
    let mut service = service(|spec| {
        spec.memory.cap = Limit::At(Size::Bytes(Bytes::mib(300)));
    });
    sample(&mut service, 4, (1, 30));
    let grown = sample(&mut service, 20, (4, 60));
    assert_eq!(cap_of(&grown), None);
}

#[test]
fn a_program_that_is_said_to_be_one_worker_is_limited_from_its_start() {
    let mut service = service(|spec| spec.kind_is_guessed = false);
    sample(&mut service, 4, (1, 30));
    let grown = sample(&mut service, 20, (4, 60));
    assert_eq!(cap_of(&grown), None);
    assert!(service.due(Cause::Ceiling));
}
