//! Set-up of the pool's unit tests.

use std::time::Duration;

use super::{
    Pool,
    input::{Action, How, Input, SlotId, WorkerEnd},
    spec::PoolSpec,
};
use crate::{
    supervisor::{
        input::{Ended, Oom},
        spec::{Limit, MemorySpec},
    },
    units::{Bytes, Size, Timestamp, WorkerId},
};

pub(super) fn at(millis: u64) -> Timestamp {
    Timestamp::default().later(Duration::from_millis(millis))
}

/// A pool whose template is starting.
pub(super) fn starting(workers: u32) -> Pool {
    starting_with(workers, 1)
}

/// As [`starting`], but a worker has up to `batch` tasks at a time.
fn starting_with(workers: u32, batch: u32) -> Pool {
    let mut pool = Pool::new(spec(workers, batch));
    handle(&mut pool, Input::Available(Bytes::mib(4000)));
    pool
}

fn spec(workers: u32, batch: u32) -> PoolSpec {
    PoolSpec {
        workers,
        max_tasks: None,
        max_age: None,
        memory: MemorySpec::plain(),
        task_timeout: None,
        retries: 0,
        oom_retries: 1,
        batch: Some(batch),
        stop_on_error: false,
        name: "etl".to_owned(),
        function: Some("etl:convert".to_owned()),
        history: 10,
        reports: true,
        time_box: Duration::from_secs(2),
    }
}

/// As [`running`], with a ceiling of 100M and this cap.
pub(super) fn running_below(tasks: u64, cap: u64) -> (Pool, WorkerId) {
    let limit = |mebibytes| Limit::At(Size::Bytes(Bytes::mib(mebibytes)));
    let mut spec = spec(1, 1);
    spec.memory.ceiling = limit(100);
    spec.memory.cap = limit(cap);
    let mut pool = Pool::new(spec);
    handle(&mut pool, Input::Available(Bytes::mib(4000)));
    begin(pool, tasks)
}

/// A pool of one worker, which is running the first of these tasks.
pub(super) fn running(tasks: u64) -> (Pool, WorkerId) {
    running_with(tasks, 1)
}

/// As [`running`], but the worker has up to `batch` tasks at a time.
pub(super) fn running_with(tasks: u64, batch: u32) -> (Pool, WorkerId) {
    begin(starting_with(1, batch), tasks)
}

fn begin(mut pool: Pool, tasks: u64) -> (Pool, WorkerId) {
    handle(&mut pool, Input::TemplateReady);
    for seq in 1..=tasks {
        handle(&mut pool, Input::TaskArrived { seq, key: 0 });
    }
    let actions = handle(&mut pool, Input::ForkServerUp(SlotId(0)));
    let worker = ready(&mut pool, &actions);
    (pool, worker)
}

/// Makes the worker ready that the last of these actions forks. It is sent task 1.
pub(super) fn ready(pool: &mut Pool, actions: &[Action]) -> WorkerId {
    let Some(&Action::Fork(_, worker)) = actions.last() else {
        panic!("{actions:?}");
    };
    let base = Bytes::mib(10);
    handle(pool, Input::Forked { worker, pid: 7 });
    let sent = handle(pool, Input::Ready { worker, base });
    assert!(sent.contains(&Action::Send(worker, 1)), "{sent:?}");
    worker
}

/// Task 1 returns after this running time.
pub(super) const fn returned(worker: WorkerId, micros: u32) -> Input {
    Input::Ended {
        worker,
        seq: 1,
        how: How::Returned,
        micros,
        peak: Bytes::mib(20),
    }
}

/// The pool's actions after this input at the time 0.
pub(super) fn handle(pool: &mut Pool, input: Input) -> Vec<Action> {
    handle_at(pool, at(0), input)
}

pub(super) fn handle_at(pool: &mut Pool, now: Timestamp, input: Input) -> Vec<Action> {
    pool.handle_input(now, input);
    std::iter::from_fn(|| pool.poll_action()).collect()
}

/// Retires a worker for an operator. Returns its successor, which was forked.
pub(super) fn succeeded(pool: &mut Pool, worker: WorkerId) -> WorkerId {
    let actions = handle(pool, Input::Recycle(worker));
    let Some(&Action::Fork(_, worker)) = actions.last() else {
        panic!("{actions:?}");
    };
    handle(pool, Input::Forked { worker, pid: 8 });
    worker
}

/// The end of a worker that has exited and has begun no task.
pub(super) const fn exited(worker: WorkerId) -> WorkerEnd {
    WorkerEnd {
        worker,
        ended: Ended::Exit(0),
        oom: Oom::No,
        peak: None,
        begun: 0,
        finished: 0,
        receiving: 0,
    }
}
