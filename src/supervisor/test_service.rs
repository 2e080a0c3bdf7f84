//! A gunicorn service for unit tests: gives inputs to the decider, and keeps its events.

use std::time::Duration;

use crate::{
    servers::gunicorn,
    supervisor::{
        Supervisor,
        action::Action,
        cause::Cause,
        event::Event,
        input::{Agent, AgentAnswer, CapMechanism, Exact, Input, Machine, Sample},
        spec::{Kind, Limit, MemorySpec, Spec},
    },
    units::{Bytes, RunId, Size, Timestamp, WorkerId},
};

pub(super) const RUN: RunId = RunId(1);

pub(super) struct Service {
    pub(super) decider: Supervisor,
    pub(super) events: Vec<Event>,
}

impl Service {
    /// A gunicorn service with a budget of 2000M and a cap of 400M for each worker.
    pub(super) fn new(change: impl FnOnce(&mut Spec)) -> Self {
        let memory = MemorySpec {
            ceiling: Limit::Off,
            cap: Limit::At(Size::Bytes(Bytes::mib(400))),
            budget: Limit::At(Size::Bytes(Bytes::mib(2000))),
            ..MemorySpec::plain()
        };
        let mut spec = Spec::for_test(memory);
        spec.kind = Kind::Server(&gunicorn::PROFILE);
        spec.ready.timeout = Duration::from_secs(60);
        change(&mut spec);
        let mut service = Self {
            decider: Supervisor::new(spec, 1, Timestamp::default()),
            events: Vec::new(),
        };
        let machine = Machine {
            caps: CapMechanism::CgroupV2,
            priority: true,
            ..Machine::default()
        };
        service.happens(0, Input::Machine(machine));
        service.happens(0, Input::Available(Bytes::mib(4000)));
        service.happens(0, Input::Started { run: RUN, pid: 7 });
        service
    }

    /// The same with two workers that are ready, and their number has settled.
    pub(super) fn with_two(change: impl FnOnce(&mut Spec)) -> Self {
        let mut service = Self::new(change);
        for (worker, pid) in [(WorkerId::FIRST, 11), (WorkerId::FIRST.next(), 12)] {
            service.seen(1, pid);
            service.ready(2, worker);
        }
        for second in 3..10 {
            service.happens(second, Input::Deadline);
        }
        service
    }

    pub(super) fn happens(&mut self, second: u64, event: Input) -> Vec<Action> {
        self.happens_at(second * 1000, event)
    }

    pub(super) fn happens_at(&mut self, millis: u64, event: Input) -> Vec<Action> {
        let now = Timestamp::default().later(Duration::from_millis(millis));
        self.decider.handle_input(now, event);
        let events = std::iter::from_fn(|| self.decider.poll_event());
        self.events.extend(events);
        std::iter::from_fn(|| self.decider.poll_action()).collect()
    }

    pub(super) fn seen(&mut self, second: u64, pid: i32) -> Vec<Action> {
        self.happens(second, Input::WorkerSeen { run: RUN, pid })
    }

    pub(super) fn ready(&mut self, second: u64, worker: WorkerId) {
        self.happens(second, Input::WorkerReady { worker });
    }

    pub(super) fn sample(&mut self, second: u64, mebibytes: u64) {
        self.sample_with_charge(second, mebibytes, None);
    }

    /// As [`Self::sample`], with the charge of its control group.
    pub(super) fn sample_with_charge(&mut self, second: u64, mebibytes: u64, charged: Option<u64>) {
        self.sampled(second * 1000, mebibytes, charged);
    }

    pub(super) fn sample_at_millis(&mut self, millis: u64, mebibytes: u64) -> Vec<Action> {
        self.sampled(millis, mebibytes, None)
    }

    pub(super) fn sampled(
        &mut self,
        millis: u64,
        mebibytes: u64,
        charged: Option<u64>,
    ) -> Vec<Action> {
        self.sample_of(WorkerId::FIRST, millis, (mebibytes, charged))
    }

    pub(super) fn sample_of(
        &mut self,
        worker: WorkerId,
        millis: u64,
        (mebibytes, charged): (u64, Option<u64>),
    ) -> Vec<Action> {
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
            at: Timestamp::default().later(Duration::from_millis(millis)),
            rss: figure,
            anon: figure,
            exact: Some(exact),
            processes: 1,
            ..Sample::default()
        };
        self.happens_at(millis, Input::Sampled { worker, sample })
    }

    pub(super) fn due(&self, wanted: Cause) -> bool {
        let is_it = |it: &Event| matches!(it, Event::Due { cause, .. } if *cause == wanted);
        self.events.iter().any(is_it)
    }

    pub(super) fn warned(&self, of: &str) -> bool {
        let holds = |it: &Event| matches!(it, Event::Warning(text) if text.contains(of));
        self.events.iter().any(holds)
    }

    pub(super) fn agent_found(&mut self, second: u64, worker: WorkerId) {
        let (agent, expected) = (Agent::Loaded, true);
        self.happens(
            second,
            Input::AgentFound {
                worker,
                agent,
                expected,
            },
        );
    }

    pub(super) fn answered(
        &mut self,
        millis: u64,
        worker: WorkerId,
        answer: AgentAnswer,
    ) -> Vec<Action> {
        self.happens_at(millis, Input::AgentAnswered { worker, answer })
    }
}
