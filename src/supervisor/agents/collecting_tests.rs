//! How long a busy worker may wait for a moment in which it can collect garbage.

use super::*;
use crate::supervisor::{
    action::Action,
    input::{AgentAnswer, Input},
    spec::{AgentLoad, Leaks, Limit},
    test_service::Service,
};
use crate::units::Size;

const CEILING: u64 = 100;
/// The worker grows by one MiB in this many milliseconds.
const GROWTH_EVERY: u64 = 50;

/// A service whose first worker grows by 20 MiB a second.
struct Growing {
    service: Service,
    /// The time in milliseconds at which it begins to grow.
    now: u64,
}

impl Growing {
    fn new() -> Self {
        let mut service = Service::new(|spec| {
            spec.memory.ceiling = Limit::At(Size::Bytes(Bytes::mib(CEILING)));
            spec.memory.gc_first = true;
            spec.recycle.min_age = Duration::from_secs(1);
            spec.agent.load = AgentLoad::On;
            spec.leaks.ask = Leaks::Off;
        });
        for (worker, pid) in [(WorkerId::FIRST, 11), (WorkerId::FIRST.next(), 12)] {
            service.seen(1, pid);
            service.ready(2, worker);
            service.agent_found(3, worker);
        }
        Self {
            service,
            now: 28_000,
        }
    }

    /// It always serves a request. Returns how much it had grown above its ceiling when it was
    /// asked for the last time.
    fn waits(mut self) -> u64 {
        let last = self.grow(|| AgentAnswer::Busy).pop();
        last.expect("it was asked once") - CEILING
    }

    /// Collecting garbage frees half of its memory at its first request.
    fn rescued(mut self) -> Self {
        let (before, after) = (Bytes::mib(CEILING), Bytes::mib(CEILING / 2));
        let asked = self.grow(|| AgentAnswer::Collected { before, after });
        assert_eq!(asked.len(), 1);
        self
    }

    /// It grows from below its ceiling to far above. Returns what it held at each request, up to
    /// the one that it answers by collecting garbage.
    fn grow(&mut self, answer: impl Fn() -> AgentAnswer) -> Vec<u64> {
        let mut asked = Vec::new();
        for millis in (0..4_000).step_by(5) {
            let (now, memory) = (self.now + millis, CEILING - 50 + millis / GROWTH_EVERY);
            let mut actions = self.service.sample_at_millis(now, memory);
            while let Some(action) = actions.pop() {
                let Action::AskAgent { worker, ask } = action else {
                    continue;
                };
                assert_eq!((worker, ask), (WorkerId::FIRST, AgentAsk::Collect));
                asked.push(memory);
                let answer = answer();
                let is_last = answer != AgentAnswer::Busy;
                actions.extend(self.service.answered(now, worker, answer));
                if is_last {
                    self.now = now + 1_000;
                    return asked;
                }
            }
        }
        asked
    }
}

#[test]
fn a_busy_worker_waits_longer_if_collecting_has_helped_before() {
    let unknown = Growing::new().waits();
    assert!((3..=5).contains(&unknown), "{unknown}");

    let helped = Growing::new().rescued().waits();
    assert!((7..=16).contains(&helped), "{helped}");

    let mut waited = Growing::new();
    waited.service.decider.state.agents.waited_in_vain = true;
    let waited = waited.waits();
    assert!(waited <= 2, "{waited}");

    let mut in_vain = Growing::new();
    let agents = &mut in_vain.service.decider.state.agents;
    agents.on_collected_in_vain(Timestamp::ZERO);
    let in_vain = in_vain.waits();
    assert!(in_vain <= 2, "{in_vain}");
}

#[test]
fn a_worker_that_has_waited_in_vain_is_the_last_one_to_wait() {
    let mut growing = Growing::new();
    growing.grow(|| AgentAnswer::Busy);
    growing
        .service
        .happens_at(32_500, Input::Available(Bytes::mib(4000)));
    growing.service.seen(33, 13);
    growing.service.ready(34, WorkerId::FIRST.next().next());
    assert!(growing.service.decider.state.agents.waited_in_vain);
}
