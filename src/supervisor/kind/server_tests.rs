//! A server with its workers: what is decided when the server stops, when a worker stays over its
//! ceiling, and when the kernel kills the server itself.

use std::time::Duration;

use super::*;
use crate::{
    servers::gunicorn,
    supervisor::{
        input::{Ask, Ended, Exact, Input, Oom, Sample, Stop},
        spec::{Kind, Limit, RestartWhen},
        test_service::{RUN, Service},
    },
    units::{RequestId, Size},
};

/// The workers whose priority changes, and to what.
fn priorities(actions: &[Action]) -> Vec<(WorkerId, Priority)> {
    let mut found = Vec::new();
    for action in actions {
        if let Action::Prioritize { worker, priority } = action {
            found.push((*worker, *priority));
        }
    }
    found
}

#[test]
fn a_worker_that_boots_with_low_priority_gets_the_normal_one_when_the_service_stops() {
    let mut service = Service::new(|_| {});
    service.seen(1, 11);
    service.ready(2, WorkerId::FIRST);
    for second in 3..30 {
        service.happens(second, Input::Deadline);
    }
    let second = WorkerId::FIRST.next();
    let actions = service.seen(30, 12);
    assert_eq!(priorities(&actions), [(second, Priority::Low)]);
    let stop = Input::Asked {
        request: RequestId(1),
        ask: Ask::Stop(Stop::Graceful),
    };
    let actions = service.happens(31, stop);
    assert_eq!(priorities(&actions), [(second, Priority::Normal)]);
}

#[test]
fn a_replacement_has_the_low_priority_only_while_the_worker_before_it_can_wait() {
    let mut service = Service::new(|spec| spec.recycle.surge = true);
    service.seen(1, 11);
    service.ready(2, WorkerId::FIRST);
    for second in 3..30 {
        service.happens(second, Input::Deadline);
    }
    let recycle = Input::Asked {
        request: RequestId(1),
        ask: Ask::Recycle(WorkerId::FIRST),
    };
    service.happens(30, recycle);
    let second = WorkerId::FIRST.next();
    let actions = service.seen(31, 12);
    assert_eq!(priorities(&actions), [(second, Priority::Low)]);
    let actions = service.happens_at(32_900, Input::Deadline);
    assert_eq!(priorities(&actions), []);
    let actions = service.happens(33, Input::Deadline);
    assert_eq!(priorities(&actions), [(second, Priority::Normal)]);
}

#[test]
fn a_worker_that_stays_over_its_ceiling_is_replaced_at_its_maximum_age() {
    let mut service = Service::new(|spec| {
        spec.memory.ceiling = Limit::At(Size::Bytes(Bytes::mib(100)));
        spec.recycle.min_age = Duration::from_secs(5);
        spec.recycle.max_age = Some(Duration::from_secs(60));
    });
    service.decider.stop_early_recycles();
    service.seen(1, 11);
    service.ready(2, WorkerId::FIRST);
    for second in 3..61 {
        service.sample(second, if second < 5 { 20 } else { 120 + second });
    }
    assert!(
        service.warned("such workers are kept"),
        "{:?}",
        service.events
    );
    assert!(!service.due(Cause::Ceiling) && !service.due(Cause::Age));
    service.sample(61, 181);
    assert!(service.due(Cause::Age), "{:?}", service.events);
}

#[test]
fn a_report_requested_during_a_window_of_tracing_is_made_after_the_agents_answer() {
    use crate::supervisor::{
        action::AgentAsk,
        input::AgentAnswer,
        spec::{AgentLoad, Leaks},
    };
    for closing in [false, true] {
        let mut service = Service::new(|spec| {
            spec.agent.load = AgentLoad::On;
            spec.leaks.ask = Leaks::Always;
        });
        let worker = WorkerId::FIRST;
        service.seen(1, 11);
        service.ready(2, worker);
        service.agent_found(3, worker);
        service.sample(3, 20);
        let mut answer = AgentAnswer::Base { taken: true };
        let mut actions = service.happens_at(3010, Input::AgentAnswered { worker, answer });
        answer = AgentAnswer::Opened;
        if closing {
            service.happens_at(3020, Input::AgentAnswered { worker, answer });
            actions = service.happens_at(3200, Input::Deadline);
            answer = AgentAnswer::Closed;
        }
        let asks = |actions: &[Action], wanted: fn(&AgentAsk) -> bool| {
            let asked = |it: &Action| matches!(it, Action::AskAgent { ask, .. } if wanted(ask));
            actions.iter().any(asked)
        };
        assert_eq!(
            asks(&actions, |ask| *ask == AgentAsk::Close),
            closing,
            "{actions:?}"
        );
        let ask = Input::Asked {
            request: RequestId(1),
            ask: Ask::Report(worker),
        };
        let actions = service.happens_at(3210, ask);
        assert!(!asks(&actions, |_| true), "{actions:?}");
        let actions = service.happens_at(3220, Input::AgentAnswered { worker, answer });
        let asked = asks(&actions, |ask| matches!(ask, AgentAsk::Report { .. }));
        assert!(asked, "closing: {closing} {actions:?}");
    }
}

#[test]
fn the_peak_of_an_end_at_the_cap_includes_what_is_charged_elsewhere() {
    let mut service = Service::new(|_| {});
    service.seen(1, 11);
    service.ready(2, WorkerId::FIRST);
    // The worker touched 30 MiB before it was moved into its group, so its limit is 370 MiB.
    service.sample_with_charge(3, 100, Some(70));
    service.happens(
        4,
        Input::WorkerEnded {
            worker: WorkerId::FIRST,
            ended: Ended::Signal(Signal::KILL),
            oom: Oom::Cap,
            peak: Some(Bytes::mib(370)),
        },
    );
    let peak = service.events.iter().find_map(|it| {
        if let Event::Ended(end) = it {
            Some(end.peak)
        } else {
            None
        }
    });
    assert_eq!(peak, Some(Bytes::mib(400)));
}

#[test]
fn a_server_that_the_kernel_kills_at_the_budget_is_restarted_after_a_wait() {
    let mut service = Service::new(|_| {});
    service.seen(1, 11);
    service.ready(2, WorkerId::FIRST);
    let killed = |oom| Input::CommandEnded {
        run: RUN,
        ended: Ended::Signal(Signal::KILL),
        oom,
        successor: None,
    };
    service.happens(10, killed(Oom::Budget));
    assert!(service.warned("the kernel has killed the server itself"));
    assert!(service.warned("restarted after 5.0s"));
    let later = |it: &Event| matches!(it, Event::Restarting { after, .. } if after.as_secs() == 5);
    assert!(service.events.iter().any(later));

    // After any other end there is no wait.
    let mut service = Service::new(|_| {});
    service.happens(10, killed(Oom::No));
    assert!(!service.warned("budget"));
    let at_once = |it: &Event| matches!(it, Event::Restarting { after, .. } if after.is_zero());
    assert!(service.events.iter().any(at_once));

    // A job is not restarted.
    let mut job = Service::new(|spec| spec.restart.when = RestartWhen::Never);
    job.happens(10, killed(Oom::Budget));
    assert!(job.warned("the kernel has killed the server itself"));
    let restarts = |it: &Event| matches!(it, Event::Restarting { .. } | Event::GaveUp { .. });
    assert!(!job.events.iter().any(restarts));
}

#[test]
fn leftovers_count_towards_the_budget_and_are_ended_before_a_worker_is_replaced() {
    use crate::supervisor::{input::Leftover, spec::Leftovers};
    for (mode, due) in [(Leftovers::Tell, true), (Leftovers::End, false)] {
        let mut service = Service::new(|spec| spec.recycle.leftovers = mode);
        service.seen(1, 11);
        service.ready(2, WorkerId::FIRST);
        service.sample(3, 20);
        service.sample(4, 60);
        let left = Leftover {
            worker: WorkerId::FIRST.next(),
            pid: 90,
            started: 7,
            tree: 90,
            command: "chrome".to_owned(),
            memory: Bytes::mib(1950),
            idle: Duration::ZERO,
        };
        for second in 5..9 {
            service.happens(second, Input::LeftBehind(vec![left.clone()]));
            service.sample(second, 60);
        }
        assert_eq!(service.due(Cause::Budget), due, "{:?}", service.events);
    }
}

/// Three workers, of which only the first `ready` become ready, so that their number does not
/// settle. The first grows by `gain` MiB in each tenth of a second. Up to `max_unavailable` workers
/// may be unavailable.
fn unsettled_number(ready: usize, gain: u64, max_unavailable: u32) -> Vec<Action> {
    let mut service = Service::new(|spec| {
        spec.memory.ceiling = Limit::At(Size::Bytes(Bytes::mib(200)));
        spec.recycle.min_age = Duration::from_secs(10);
        spec.recycle.max_unavailable = max_unavailable;
    });
    for pid in 11..14 {
        service.happens_at(100, Input::WorkerSeen { run: RUN, pid });
    }
    let mut id = WorkerId::FIRST;
    for _ in 0..ready {
        service.happens_at(200, Input::WorkerReady { worker: id });
        id = id.next();
    }
    let mut actions = Vec::new();
    for tenth in 3..16 {
        actions.extend(service.sample_at_millis(tenth * 100, 40 + (tenth - 3) * gain));
    }
    actions
}

#[test]
fn a_fast_leak_is_replaced_before_its_cap_even_if_the_number_of_workers_is_not_known() {
    let retired = Action::SignalWorker {
        worker: WorkerId::FIRST,
        signal: Signal::TERM,
    };
    // 200 MB/s, towards a cap of 400M.
    assert!(unsettled_number(2, 20, 2).contains(&retired));
    // A worker that boots is already unavailable.
    assert!(!unsettled_number(2, 20, 1).contains(&retired));
    // The only worker that serves is kept.
    assert!(!unsettled_number(1, 20, 3).contains(&retired));
    // A worker that does not leak is kept.
    assert!(!unsettled_number(2, 1, 2).contains(&retired));
}

/// The cause of the end of a worker that passes its ceiling of 200M and reaches its cap of 400M
/// while it drains. It shares 150M with its server, and grows by `gain` MiB in each tenth of a
/// second. A second worker serves.
fn reached_cap_draining(gain: u64) -> Option<Cause> {
    let mut service = Service::new(|spec| {
        spec.memory.ceiling = Limit::At(Size::Bytes(Bytes::mib(200)));
    });
    for pid in [11, 12] {
        service.happens_at(100, Input::WorkerSeen { run: RUN, pid });
    }
    let worker = WorkerId::FIRST;
    service.happens_at(200, Input::WorkerReady { worker });
    let second = worker.next();
    service.happens_at(200, Input::WorkerReady { worker: second });
    for tenth in 3..80 {
        let grown = Bytes::mib(340).minus(Bytes::mib(gain * (80 - tenth)));
        let private = grown.max(Bytes::mib(30));
        let figures = Exact {
            private,
            anon: private,
            pss: private,
            took: Duration::from_millis(1),
            ..Exact::default()
        };
        let now = Timestamp::default().later(Duration::from_millis(tenth * 100));
        let sample = Sample {
            at: now,
            rss: private.plus(Bytes::mib(150)),
            anon: private.plus(Bytes::mib(150)),
            exact: Some(figures),
            processes: 1,
            ..Sample::default()
        };
        service.happens_at(tenth * 100, Input::Sampled { worker, sample });
    }
    let (ended, oom) = (Ended::Signal(Signal::KILL), Oom::Cap);
    let input = Input::WorkerEnded {
        worker,
        ended,
        oom,
        peak: None,
    };
    let drains = |it: &Event| matches!(it, Event::Draining { .. });
    assert!(service.events.iter().any(drains));
    service.happens_at(8100, input);
    service.events.iter().find_map(|event| {
        let Event::Ended(end) = event else {
            return None;
        };
        Some(end.cause)
    })
}

#[test]
fn a_draining_worker_that_grows_to_its_cap_ends_for_the_cap() {
    // At 40 MB/s it cannot have reached its cap: its interpreter has copied the shared pages.
    assert_eq!(reached_cap_draining(4), Some(Cause::Ceiling));
    // At 300 MB/s it has grown to its cap.
    assert_eq!(reached_cap_draining(30), Some(Cause::Cap));
}

#[test]
fn a_worker_that_its_server_kills_after_the_ready_timeout_ends_as_unready() {
    for (second, cause) in [(59, Cause::Signal(Signal::ABRT)), (62, Cause::Unready)] {
        let mut service = Service::new(|_| {});
        service.seen(1, 11);
        let ended = Ended::Signal(Signal::ABRT);
        let (worker, oom) = (WorkerId::FIRST, Oom::No);
        service.happens(
            second,
            Input::WorkerEnded {
                worker,
                ended,
                oom,
                peak: None,
            },
        );
        let is_it = |it: &Event| matches!(it, Event::Ended(end) if end.cause == cause);
        assert!(service.events.iter().any(is_it), "{cause}");
    }
}

#[test]
fn each_decision_about_a_candidate_causes_one_reason_event() {
    let mut service = Service::new(|spec| {
        spec.memory.ceiling = Limit::At(Size::Bytes(Bytes::mib(200)));
        spec.recycle.surge = true;
    });
    let second = WorkerId::FIRST.next();
    for (pid, worker) in [(11, WorkerId::FIRST), (12, second)] {
        service.seen(1, pid);
        service.ready(2, worker);
    }
    for (time, mebibytes) in [(3, 50), (4, 50), (5, 250), (6, 250), (7, 250)] {
        service.sample(time, mebibytes);
    }
    service.seen(8, 13);
    service.ready(9, second.next());
    let reasons = service.events.iter().filter_map(|event| {
        let Event::Reason { worker, text } = event else {
            return None;
        };
        Some((*worker, text.rsplit(": ").next()?))
    });
    let worker = Some(WorkerId::FIRST);
    assert_eq!(
        reasons.collect::<Vec<_>>(),
        [
            (worker, "waits until its replacement is ready"),
            (worker, "asking its server to retire one worker"),
        ]
    );
}

#[test]
fn a_server_that_stops_after_a_failed_boot_causes_a_warning_unless_the_agent_prevents_it() {
    use crate::{servers::uvicorn, supervisor::spec::AgentLoad};
    let warned = |server, load| {
        let mut service = Service::new(|spec| {
            spec.kind = Kind::Server(server);
            spec.agent.load = load;
        });
        service.seen(1, 11);
        service.ready(2, WorkerId::FIRST);
        service.warned("that cannot boot makes")
    };
    assert!(!warned(&gunicorn::PROFILE, AgentLoad::Auto));
    assert!(warned(&gunicorn::PROFILE, AgentLoad::Off));
    assert!(!warned(&uvicorn::PROFILE, AgentLoad::Auto));
    assert!(warned(&uvicorn::PROFILE, AgentLoad::Off));
}

/// A fleet of two copies that is ready, whose stop signal is INT.
/// The worker that leaves first when two have passed their ceiling of 200M. The first one, which
/// gunicorn would retire, grows by `gain` MiB a second towards its cap of 400M.
fn leaves_first(gain: u64) -> Option<WorkerId> {
    let mut service = Service::with_two(|spec| {
        spec.memory.ceiling = Limit::At(Size::Bytes(Bytes::mib(200)));
        spec.recycle.min_age = Duration::from_secs(1);
        spec.recycle.surge = true;
    });
    let second = WorkerId::FIRST.next();
    let third = second.next();
    for tenth in 100..440 {
        let millis = tenth * 100;
        let mut actions = Vec::new();
        for (worker, gain) in [(WorkerId::FIRST, gain), (second, 20)] {
            let figure = if tenth < 400 {
                40 + 130 * (tenth - 100) / 300
            } else {
                170 + gain * (tenth - 400) / 10
            };
            actions.extend(service.sample_of(worker, millis, (figure, None)));
        }
        let is_raise = |one: &Action| matches!(one, Action::SignalCommand { .. });
        if actions.iter().any(is_raise) {
            service.happens_at(millis, Input::WorkerSeen { run: RUN, pid: 13 });
        }
        if tenth == 425 {
            // Both are over their ceiling.
            actions = service.happens_at(millis, Input::WorkerReady { worker: third });
        }
        for action in actions {
            if let Action::SignalWorker { worker, .. } = action {
                return Some(worker);
            }
        }
    }
    None
}

#[test]
fn the_worker_that_the_kernel_would_kill_first_leaves_first() {
    // The worker that gunicorn would retire comes last, unless it is in danger.
    assert_eq!(leaves_first(20), Some(WorkerId::FIRST.next()));
    assert_eq!(leaves_first(88), Some(WorkerId::FIRST));
}

fn fleet() -> Service {
    use crate::servers::fleet;
    Service::with_two(|spec| {
        spec.kind = Kind::Server(&fleet::PROFILE);
        spec.copies = Some(2);
        spec.stop.signal = Signal::INT;
        spec.recycle.surge = false;
    })
}

/// The signals that workers and the server get.
fn signals(actions: &[Action]) -> Vec<(&'static str, Signal)> {
    let mut signals = Vec::new();
    for action in actions {
        if let Action::SignalWorker { signal, .. } = action {
            signals.push(("a worker", *signal));
        } else if let Action::SignalCommand { signal, .. } = action {
            signals.push(("the server", *signal));
        }
    }
    signals
}

/// The signals that an input causes in a fleet.
fn signals_because_of(input: Input) -> Vec<(&'static str, Signal)> {
    let mut service = fleet();
    let mut actions = service.happens(11, input);
    actions.extend(service.happens(12, Input::Deadline));
    signals(&actions)
}

#[test]
fn a_copy_is_stopped_by_the_configured_signal() {
    let (request, ask) = (RequestId(1), Ask::Recycle(WorkerId::FIRST));
    let signals = signals_because_of(Input::Asked { request, ask });
    assert_eq!(signals, [("a worker", Signal::INT)]);
}

#[test]
fn a_hangup_reloads_a_fleet_and_is_not_passed_on() {
    let signals = signals_because_of(Input::Signalled(Signal::HUP));
    assert_eq!(signals, [("a worker", Signal::INT)]);
}

#[test]
fn a_server_is_stopped_by_its_own_signal_unless_another_is_configured() {
    use crate::servers::huey;
    for (configured, expected) in [(Signal::TERM, Signal::INT), (Signal::QUIT, Signal::QUIT)] {
        let mut service = Service::with_two(|spec| {
            spec.kind = Kind::Server(&huey::PROFILE);
            spec.stop.signal = configured;
            spec.stop.grace = Duration::from_secs(10);
        });
        let (request, ask) = (RequestId(1), Ask::Stop(Stop::Graceful));
        let mut actions = service.happens(11, Input::Asked { request, ask });
        actions.extend(service.happens(11, Input::BacklogEmpty { run: RUN }));
        assert_eq!(signals(&actions), [("the server", expected)], "{actions:?}");
    }
}
