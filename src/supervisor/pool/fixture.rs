//! Set-up of the pool's unit tests.

use std::time::Duration;

use super::{
    Pool,
    event::{Action, Event, How, SlotId},
    spec::PoolSpec,
};
use crate::{
    supervisor::spec::MemorySpec,
    units::{Bytes, Timestamp, WorkerId},
};

pub(super) fn at(millis: u64) -> Timestamp {
    Timestamp::default().later(Duration::from_millis(millis))
}

/// A pool whose template is starting.
pub(super) fn starting(workers: u32) -> Pool {
    starting_with(workers, 1)
}

/// As [`starting`], where up to `batch` tasks wait at a worker.
fn starting_with(workers: u32, batch: u32) -> Pool {
    let mut pool = Pool::new(PoolSpec {
        workers,
        max_tasks: None,
        max_age: None,
        memory: MemorySpec::plain(),
        task_timeout: None,
        retries: 0,
        oom_retries: 1,
        batch: Some(batch),
        stop_on_error: false,
    });
    handle(&mut pool, Event::Available(Bytes::mib(4000)));
    pool
}

/// A pool of one worker, which is running the first of these tasks.
pub(super) fn running(tasks: u64) -> (Pool, WorkerId) {
    running_with(tasks, 1)
}

/// As [`running`], where up to `batch` tasks wait at the worker.
pub(super) fn running_with(tasks: u64, batch: u32) -> (Pool, WorkerId) {
    let mut pool = starting_with(1, batch);
    handle(&mut pool, Event::TemplateReady);
    for seq in 1..=tasks {
        handle(&mut pool, Event::Came { seq, key: 0 });
    }
    let actions = handle(&mut pool, Event::NestUp(SlotId(0)));
    let worker = ready(&mut pool, &actions);
    (pool, worker)
}

/// The worker that the last of these actions forks becomes ready and is sent task 1.
pub(super) fn ready(pool: &mut Pool, actions: &[Action]) -> WorkerId {
    let Some(&Action::Fork(_, worker)) = actions.last() else {
        panic!("{actions:?}");
    };
    let base = Bytes::mib(10);
    let sent = handle(pool, Event::Ready { worker, base });
    assert!(sent.contains(&Action::Send(worker, 1)), "{sent:?}");
    worker
}

/// Task 1 returns after this running time.
pub(super) const fn returned(worker: WorkerId, micros: u32) -> Event {
    Event::Ended {
        worker,
        seq: 1,
        how: How::Returned,
        micros,
        peak: Bytes::mib(20),
    }
}

/// The pool's actions after this event at the time 0.
pub(super) fn handle(pool: &mut Pool, event: Event) -> Vec<Action> {
    handle_at(pool, at(0), event)
}

pub(super) fn handle_at(pool: &mut Pool, now: Timestamp, event: Event) -> Vec<Action> {
    pool.handle_event(now, event);
    std::iter::from_fn(|| pool.poll_action()).collect()
}
