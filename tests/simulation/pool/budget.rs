//! What a pool does when its tasks approach the budget.

use std::{collections::VecDeque, time::Duration};

use supervise::{
    supervisor::{
        pool::{
            Pool,
            input::{Action, How, Input, SlotId},
            spec::PoolSpec,
        },
        spec::{Limit, MemorySpec},
    },
    units::{Bytes, Size, Timestamp},
};

/// A pool of four workers with a budget of 400M. Its first task has needed `need`; then eight more
/// come. Returns the pool and its actions.
fn with_tasks_of(need: Bytes) -> (Pool, Timestamp, Vec<Action>) {
    let size = |text: &str| text.parse::<Size>().map_or(Limit::Auto, Limit::At);
    let mut pool = Pool::new(PoolSpec {
        workers: 4,
        max_tasks: None,
        max_age: None,
        memory: MemorySpec {
            budget: size("400M"),
            ..MemorySpec::plain()
        },
        task_timeout: None,
        retries: 0,
        oom_retries: 1,
        batch: Some(1),
        stop_on_error: false,
        name: "etl".to_owned(),
        function: None,
        history: 10,
        reports: false,
        time_box: Duration::from_secs(2),
    });
    let mut now = Timestamp::default();
    let mut actions = Vec::new();
    let mut pending = VecDeque::from([
        Input::Available(Bytes::mib(1000)),
        Input::TemplateReady,
        Input::TaskArrived { seq: 1, key: 0 },
    ]);
    pending.extend((2..=9).map(|seq| Input::TaskArrived { seq, key: 0 }));
    let mut learned = false;
    while let Some(input) = pending.pop_front() {
        now = now.later(Duration::from_millis(1));
        pool.handle_input(now, input);
        while let Some(action) = pool.poll_action() {
            match action {
                Action::StartForkServer(slot, _) => pending.push_back(Input::ForkServerUp(slot)),
                // The first task ends before the other workers are ready: its need is known then.
                Action::Fork(_, worker) if !learned => {
                    learned = true;
                    let base = Bytes::ZERO;
                    pending.push_front(Input::Ended {
                        worker,
                        seq: 1,
                        how: How::Returned,
                        micros: 1000,
                        peak: need,
                    });
                    pending.push_front(Input::Ready { worker, base });
                }
                Action::Fork(_, worker) => pending.push_back(Input::Ready {
                    worker,
                    base: Bytes::ZERO,
                }),
                other => actions.push(other),
            }
        }
    }
    (pool, now, actions)
}

/// The tasks that were sent after the first one.
fn sent_together(actions: &[Action]) -> usize {
    let sent = |action: &&Action| matches!(action, Action::Send(..));
    actions.iter().filter(sent).count() - 1
}

#[test]
fn tasks_that_do_not_fit_into_the_budget_together_wait() {
    for (need, together) in [(20, 4), (100, 3), (150, 2), (250, 1), (900, 1)] {
        let (_, _, actions) = with_tasks_of(Bytes::mib(need));
        assert_eq!(sent_together(&actions), together, "{need} MiB each");
    }
}

#[test]
fn near_the_budget_the_youngest_task_is_suspended_or_killed_and_resumed_later() {
    let after = |each: u64, then: u64| {
        let (mut pool, mut now, _) = with_tasks_of(Bytes::mib(20));
        let mut actions = Vec::new();
        for memory in [each, then] {
            for slot in 0..4 {
                now = now.later(Duration::from_millis(1));
                pool.handle_input(now, Input::Sampled(SlotId(slot), Bytes::mib(memory)));
                actions.extend(std::iter::from_fn(|| pool.poll_action()));
            }
        }
        let is = |look: fn(&Action) -> bool| actions.iter().any(look);
        (
            is(|it| matches!(it, Action::Suspend(_))),
            is(|it| matches!(it, Action::KillSlot(_))),
            is(|it| matches!(it, Action::Resume(_))),
        )
    };
    assert_eq!(after(80, 80), (false, false, false));
    assert_eq!(after(93, 93), (true, false, false));
    assert_eq!(after(93, 20), (true, false, true));
    assert!(after(99, 99).1, "over the budget the youngest is killed");
}
