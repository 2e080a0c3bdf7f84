//! What a pool does as its tasks near the budget.

use std::{collections::VecDeque, time::Duration};

use supervise::{
    supervisor::{
        pool::{
            Pool,
            event::{Action, Event, How, SlotId},
            spec::PoolSpec,
        },
        spec::{Limit, MemorySpec},
    },
    units::{Bytes, Size, Timestamp},
};

/// A pool of four with a budget of 400M whose tasks each grew by `need` so far, and all that it
/// wanted since it had eight more of them.
fn pressed(need: Bytes) -> (Pool, Timestamp, Vec<Action>) {
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
    });
    let mut now = Timestamp::default();
    let mut wanted = Vec::new();
    let mut news = VecDeque::from([
        Event::Available(Bytes::mib(1000)),
        Event::TemplateReady,
        Event::Came { seq: 1, key: 0 },
    ]);
    news.extend((2..=9).map(|seq| Event::Came { seq, key: 0 }));
    let mut learned = false;
    while let Some(event) = news.pop_front() {
        now = now.later(Duration::from_millis(1));
        pool.handle_event(now, event);
        while let Some(action) = pool.poll_action() {
            match action {
                Action::RaiseNest(slot, _) => news.push_back(Event::NestUp(slot)),
                // The first one teaches what the others need, before these are there.
                Action::Fork(_, worker) if !learned => {
                    learned = true;
                    let base = Bytes::ZERO;
                    news.push_front(Event::Ended {
                        worker,
                        seq: 1,
                        how: How::Returned,
                        micros: 1000,
                        peak: need,
                    });
                    news.push_front(Event::Ready { worker, base });
                }
                Action::Fork(_, worker) => news.push_back(Event::Ready {
                    worker,
                    base: Bytes::ZERO,
                }),
                other => wanted.push(other),
            }
        }
    }
    (pool, now, wanted)
}

fn under_way(wanted: &[Action]) -> usize {
    let sent = |action: &&Action| matches!(action, Action::Send(..));
    wanted.iter().filter(sent).count() - 1
}

#[test]
fn tasks_that_do_not_fit_together_wait() {
    for (need, together) in [(20, 4), (100, 3), (150, 2), (250, 1), (900, 1)] {
        let (_, _, wanted) = pressed(Bytes::mib(need));
        assert_eq!(under_way(&wanted), together, "{need} MB each");
    }
}

#[test]
fn under_pressure_the_youngest_is_suspended_then_killed_then_goes_on() {
    let after = |each: u64, then: u64| {
        let (mut pool, mut now, _) = pressed(Bytes::mib(20));
        let mut wanted = Vec::new();
        for memory in [each, then] {
            for slot in 0..4 {
                now = now.later(Duration::from_millis(1));
                pool.handle_event(now, Event::Sampled(SlotId(slot), Bytes::mib(memory)));
                wanted.extend(std::iter::from_fn(|| pool.poll_action()));
            }
        }
        let is = |look: fn(&Action) -> bool| wanted.iter().any(look);
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
