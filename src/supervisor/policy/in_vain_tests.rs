//! Which recycles are held back, and for how long.

use super::*;

const EARLY_ONE: Early = Early {
    memory: Bytes::mib(184),
    ceiling: Bytes::mib(150),
    cap: Bytes::mib(300),
    grows: true,
    worked: false,
    settled: false,
};

fn after(early: u32) -> InVain {
    let mut futile = InVain::default();
    (0..early).for_each(|_| futile.on_early(2));
    futile
}

#[test]
fn two_early_recycles_are_allowed_and_then_workers_wait() {
    assert_eq!(after(0).judge(EARLY_ONE, 2), Verdict::Recycle);
    assert_eq!(after(1).judge(EARLY_ONE, 2), Verdict::Recycle);
    assert_eq!(after(2).judge(EARLY_ONE, 2), Verdict::Wait);
}

#[test]
fn a_worker_that_stopped_growing_after_its_warm_up_is_not_recycled() {
    let settled = Early {
        grows: false,
        settled: true,
        ..EARLY_ONE
    };
    assert_eq!(after(2).judge(settled, 2), Verdict::Stop);
    let young = Early {
        settled: false,
        ..settled
    };
    assert_eq!(after(2).judge(young, 2), Verdict::Wait);
}

#[test]
fn a_fast_leak_is_recycled_close_to_its_cap() {
    let near = Early {
        memory: Bytes::mib(245),
        ..EARLY_ONE
    };
    assert_eq!(after(2).judge(near, 2), Verdict::Recycle);
    assert_eq!(after(5).judge(near, 2), Verdict::Wait);
    let works = Early {
        worked: true,
        ..near
    };
    assert_eq!(after(50).judge(works, 2), Verdict::Recycle);
}

#[test]
fn after_a_proven_leak_workers_are_recycled_at_their_ceiling() {
    let mut futile = after(2);
    assert_eq!(futile.judge(EARLY_ONE, 2), Verdict::Wait);
    futile.leaks = true;
    assert_eq!(futile.judge(EARLY_ONE, 2), Verdict::Recycle);
}

#[test]
fn a_worker_that_stays_below_its_ceiling_for_a_while_resets_the_count() {
    let mut futile = after(7);
    futile.on_help();
    assert_eq!(futile.judge(EARLY_ONE, 2), Verdict::Recycle);
}

#[test]
fn the_wait_between_recycles_for_the_budget_doubles() {
    let at = |s| Timestamp::default().later(Duration::from_secs(s));
    let mut futile = InVain::default();
    let waits: Vec<_> = [0, 10, 80, 210]
        .map(|s| {
            futile.on_budget(at(s), 2);
            futile
                .budget_after
                .map(|after| after.since(at(s)).as_secs())
        })
        .into();
    assert_eq!(waits, [None, Some(60), Some(120), Some(240)]);
    futile.on_budget(at(1000), 2);
    assert_eq!(futile.budget_after, None);
}
