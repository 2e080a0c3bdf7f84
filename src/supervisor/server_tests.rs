//! A server with its workers: what is decided when it stops, when a worker stays over its ceiling,
//! and when the kernel kills the server itself.

use std::time::Duration;

use super::*;
use crate::{
    supervisor::{
        event::{Ask, CapMechanism, Ended, Event, Exact, Machine, Oom, Sample, Stop},
        spec::{Limit, MemorySpec, RestartWhen, Spec},
    },
    units::{Habits, RequestId, RunId, ServerKind, Signal, Size},
};

const RUN: RunId = RunId(1);
const HABITS: Habits = Habits {
    kind: ServerKind::Gunicorn,
    retire: Signal::TERM,
    raise: Signal::TTIN,
    lower: Signal::TTOU,
    reload: Signal::HUP,
    second_master: Signal::USR2,
    quit: Signal::QUIT,
    boot_failures: [3, 4],
};

struct Service {
    decider: Supervisor,
    reports: Vec<Report>,
}

impl Service {
    /// gunicorn, with a budget of 2000M and a cap of 400M for each worker.
    fn new(wish: impl FnOnce(&mut Spec)) -> Self {
        let memory = MemorySpec {
            ceiling: Limit::Off,
            cap: Limit::At(Size::Bytes(Bytes::mib(400))),
            budget: Limit::At(Size::Bytes(Bytes::mib(2000))),
            ..MemorySpec::plain()
        };
        let mut spec = Spec::for_test(memory);
        spec.kind = Kind::Server(HABITS);
        spec.ready.timeout = Duration::from_secs(60);
        wish(&mut spec);
        let mut service = Self {
            decider: Supervisor::new(spec, 1, Timestamp::default()),
            reports: Vec::new(),
        };
        let machine = Machine {
            caps: CapMechanism::CgroupV2,
            priority: true,
            ..Machine::default()
        };
        service.happens(0, Event::Machine(machine));
        service.happens(0, Event::Available(Bytes::mib(4000)));
        service.happens(0, Event::Started { run: RUN, pid: 7 });
        service
    }

    fn happens(&mut self, second: u64, event: Event) -> Vec<Action> {
        self.happens_at(second * 1000, event)
    }

    fn happens_at(&mut self, millis: u64, event: Event) -> Vec<Action> {
        let now = Timestamp::default().later(Duration::from_millis(millis));
        self.decider.handle_event(now, event);
        let reports = std::iter::from_fn(|| self.decider.poll_report());
        self.reports.extend(reports);
        std::iter::from_fn(|| self.decider.poll_action()).collect()
    }

    fn seen(&mut self, second: u64, pid: i32) -> Vec<Action> {
        self.happens(second, Event::WorkerSeen { run: RUN, pid })
    }

    fn ready(&mut self, second: u64, worker: WorkerId) {
        self.happens(second, Event::WorkerReady { worker });
    }

    fn looked(&mut self, second: u64, mebibytes: u64) {
        self.looked_with(second, mebibytes, None);
    }

    /// As [`Self::looked`], with what its control group is charged with.
    fn looked_with(&mut self, second: u64, mebibytes: u64, charged: Option<u64>) {
        let figure = Bytes::mib(mebibytes);
        let exact = Exact {
            private: figure,
            anon: figure,
            pss: figure,
            charged: charged.map(Bytes::mib),
            took: Duration::from_millis(1),
            ..Exact::default()
        };
        let sample = Sample {
            at: Timestamp::default().later(Duration::from_secs(second)),
            rss: figure,
            anon: figure,
            exact: Some(exact),
            processes: 1,
            ..Sample::default()
        };
        let worker = WorkerId::FIRST;
        self.happens(second, Event::Sampled { worker, sample });
    }

    fn due(&self, wanted: Cause) -> bool {
        let is_it = |it: &Report| matches!(it, Report::Due { cause, .. } if *cause == wanted);
        self.reports.iter().any(is_it)
    }

    fn warned(&self, of: &str) -> bool {
        let holds = |it: &Report| matches!(it, Report::Warning(text) if text.contains(of));
        self.reports.iter().any(holds)
    }
}

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
fn a_worker_that_boots_with_low_priority_has_the_normal_one_when_the_service_stops() {
    let mut service = Service::new(|_| {});
    service.seen(1, 11);
    service.ready(2, WorkerId::FIRST);
    for second in 3..30 {
        service.happens(second, Event::Deadline);
    }
    let second = WorkerId::FIRST.next();
    let actions = service.seen(30, 12);
    assert_eq!(priorities(&actions), [(second, Priority::Low)]);
    let stop = Event::Asked {
        request: RequestId(1),
        ask: Ask::Stop(Stop::Graceful),
    };
    let actions = service.happens(31, stop);
    assert_eq!(priorities(&actions), [(second, Priority::Normal)]);
}

#[test]
fn a_worker_that_stays_over_its_ceiling_is_replaced_at_its_age() {
    let mut service = Service::new(|spec| {
        spec.memory.ceiling = Limit::At(Size::Bytes(Bytes::mib(100)));
        spec.recycle.min_age = Duration::from_secs(5);
        spec.recycle.max_age = Some(Duration::from_secs(60));
    });
    service.decider.stop_early_recycles();
    service.seen(1, 11);
    service.ready(2, WorkerId::FIRST);
    for second in 3..61 {
        service.looked(second, if second < 5 { 20 } else { 120 + second });
    }
    assert!(service.warned("such workers stay"), "{:?}", service.reports);
    assert!(!service.due(Cause::Ceiling) && !service.due(Cause::Age));
    service.looked(61, 181);
    assert!(service.due(Cause::Age), "{:?}", service.reports);
}

#[test]
fn a_report_that_is_asked_for_during_a_window_is_made_after_the_answer() {
    use crate::supervisor::{
        action::AgentAsk,
        event::{Agent, Said},
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
        let (agent, expected) = (Agent::Loaded, true);
        service.happens(
            3,
            Event::AgentFound {
                worker,
                agent,
                expected,
            },
        );
        service.looked(3, 20);
        let mut actions = service.happens_at(3010, Event::Deadline);
        let mut said = Said::Opened;
        if closing {
            service.happens_at(3020, Event::Said { worker, said });
            actions = service.happens_at(3200, Event::Deadline);
            said = Said::Closed;
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
        let ask = Event::Asked {
            request: RequestId(1),
            ask: Ask::Report(worker),
        };
        let actions = service.happens_at(3210, ask);
        assert!(!asks(&actions, |_| true), "{actions:?}");
        let actions = service.happens_at(3220, Event::Said { worker, said });
        let reports = asks(&actions, |ask| matches!(ask, AgentAsk::Report { .. }));
        assert!(reports, "closing: {closing} {actions:?}");
    }
}

#[test]
fn the_peak_of_an_end_at_the_cap_has_what_is_charged_elsewhere() {
    let mut service = Service::new(|_| {});
    service.seen(1, 11);
    service.ready(2, WorkerId::FIRST);
    // 30 MiB were touched before the worker was moved into its group: its limit is 370 MiB.
    service.looked_with(3, 100, Some(70));
    service.happens(
        4,
        Event::WorkerEnded {
            worker: WorkerId::FIRST,
            ended: Ended::Signal(Signal::KILL),
            oom: Oom::Cap,
            peak: Some(Bytes::mib(370)),
        },
    );
    let peak = service.reports.iter().find_map(|it| {
        if let Report::Ended(end) = it {
            Some(end.peak)
        } else {
            None
        }
    });
    assert_eq!(peak, Some(Bytes::mib(400)));
}

#[test]
fn a_server_that_the_kernel_kills_at_the_budget_is_told_and_restarted_after_a_wait() {
    let mut service = Service::new(|_| {});
    service.seen(1, 11);
    service.ready(2, WorkerId::FIRST);
    let killed = |oom| Event::CommandEnded {
        run: RUN,
        ended: Ended::Signal(Signal::KILL),
        oom,
        successor: None,
    };
    service.happens(10, killed(Oom::Budget));
    assert!(service.warned("the kernel has killed the server itself"));
    assert!(service.warned("restarted after 5.0s"));
    let later =
        |it: &Report| matches!(it, Report::Restarting { after, .. } if after.as_secs() == 5);
    assert!(service.reports.iter().any(later));

    // Any other end of it is not.
    let mut service = Service::new(|_| {});
    service.happens(10, killed(Oom::No));
    assert!(!service.warned("budget"));
    let at_once = |it: &Report| matches!(it, Report::Restarting { after, .. } if after.is_zero());
    assert!(service.reports.iter().any(at_once));

    // A job is not started again.
    let mut job = Service::new(|spec| spec.restart.when = RestartWhen::Never);
    job.happens(10, killed(Oom::Budget));
    assert!(job.warned("the kernel has killed the server itself"));
    let restarts = |it: &Report| matches!(it, Report::Restarting { .. } | Report::GaveUp { .. });
    assert!(!job.reports.iter().any(restarts));
}

#[test]
fn what_is_left_behind_counts_in_the_budget_and_is_ended_before_a_worker_goes() {
    use crate::supervisor::{event::Leftover, spec::Leftovers};
    for (mode, due) in [(Leftovers::Tell, true), (Leftovers::End, false)] {
        let mut service = Service::new(|spec| spec.recycle.leftovers = mode);
        service.seen(1, 11);
        service.ready(2, WorkerId::FIRST);
        service.looked(3, 20);
        service.looked(4, 60);
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
            service.happens(second, Event::LeftBehind(vec![left.clone()]));
            service.looked(second, 60);
        }
        assert_eq!(service.due(Cause::Budget), due, "{:?}", service.reports);
    }
}
