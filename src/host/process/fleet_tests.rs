//! Which copies run, and when the next one is started.

use super::*;

const FAILED: (Ended, bool) = (Ended::Exit(1), false);
const WELL: (Ended, bool) = (Ended::Exit(0), true);

/// A fleet of two copies, 1 and 2, and the time of their start.
fn fleet() -> (Fleet, Timestamp) {
    let (mut fleet, now) = (Fleet::new(2, false), Timestamp::default());
    for pid in 1..=2 {
        assert!(fleet.wants_one(now));
        fleet.on_start(pid, now);
    }
    assert!(!fleet.wants_one(now));
    (fleet, now)
}

#[test]
fn one_copy_more_is_started_and_then_the_oldest_is_stopped() {
    let (mut fleet, now) = fleet();
    fleet.scale(true);
    assert!(fleet.wants_one(now));
    fleet.on_start(3, now);
    fleet.scale(false);
    assert_eq!(fleet.take_excess(), [1]);
    assert!(fleet.take_excess().is_empty(), "it is told once");
    fleet.on_end(1, FAILED, now);
    assert!(!fleet.wants_one(now));
}

#[test]
fn a_copy_that_fails_soon_is_started_again_after_a_pause_that_grows() {
    let (mut fleet, now) = fleet();
    let mut pauses = Vec::new();
    let mut at = now;
    for pid in 2..10 {
        fleet.on_end(pid, FAILED, at);
        let pause = fleet.next_start(at).expect("a start is due later");
        pauses.push(pause);
        assert!(!fleet.wants_one(at));
        at = at.later(pause);
        assert!(fleet.wants_one(at));
        fleet.on_start(pid + 1, at);
    }
    assert_eq!(pauses[..2], [PAUSE_MIN, PAUSE_MIN * 2]);
    assert_eq!(pauses.last(), Some(&PAUSE_MAX));
    let much_later = at.later(LASTS);
    fleet.on_end(10, FAILED, much_later);
    assert!(fleet.wants_one(much_later), "it has run for long");
}

#[test]
fn a_copy_that_exits_well_is_replaced_soon_and_the_pause_does_not_grow() {
    let (mut fleet, mut now) = fleet();
    for pid in 1..5 {
        fleet.on_end(pid, WELL, now);
        assert_eq!(
            fleet.next_start(now),
            Some(PAUSE_MIN),
            "there is no busy loop"
        );
        now = now.later(PAUSE_MIN);
        fleet.on_start(pid + 2, now);
    }
    let much_later = now.later(LASTS);
    fleet.on_end(5, WELL, much_later);
    assert!(fleet.wants_one(much_later));
}

#[test]
fn a_new_copy_that_is_stopped_soon_again_and_again_is_started_after_a_pause_that_grows() {
    let (mut fleet, mut now) = fleet();
    fleet.scale(true);
    let mut pauses = Vec::new();
    for pid in 3..6 {
        fleet.on_start(pid, now);
        fleet.on_end(pid, WELL, now);
        let pause = fleet.next_start(now).unwrap();
        pauses.push(pause);
        now = now.later(pause);
    }
    assert_eq!(pauses, [PAUSE_MIN, PAUSE_MIN * 2, PAUSE_MIN * 4]);
}

#[test]
fn a_copy_that_the_supervisor_stops_is_not_replaced_and_no_other_is_stopped_for_it() {
    let (mut fleet, now) = fleet();
    fleet.scale(true);
    fleet.on_start(3, now);
    fleet.expect_end();
    assert!(fleet.take_excess().is_empty());
    fleet.on_end(3, WELL, now);
    let later = now.later(PAUSE_MAX);
    assert!(!fleet.wants_one(later) && fleet.take_excess().is_empty());
    fleet.on_end(2, FAILED, later);
    assert!(fleet.wants_one(later.later(PAUSE_MAX)), "the others are");
}

#[test]
fn a_fleet_that_stops_tells_every_copy_and_is_over_when_the_last_has_ended() {
    let (mut fleet, now) = fleet();
    fleet.stop();
    assert_eq!(fleet.take_excess(), [1, 2]);
    fleet.on_end(1, WELL, now);
    assert!(fleet.over().is_none() && !fleet.wants_one(now));
    fleet.on_end(2, WELL, now);
    assert_eq!(fleet.over(), Some(Ended::Exit(0)));
}
#[test]
fn the_parent_of_a_single_program_ends_like_the_last_copy() {
    for (how, well) in [FAILED, WELL, (Ended::Signal(Signal::KILL), false)] {
        let (mut fleet, now) = (Fleet::new(1, true), Timestamp::default());
        fleet.on_start(1, now);
        assert_eq!(fleet.over(), None);
        fleet.on_end(1, (how, well), now);
        assert_eq!(fleet.over(), Some(how));
    }
}

#[test]
fn the_parent_of_a_single_program_stays_while_another_copy_runs_or_one_was_told_to_stop() {
    let (mut fleet, now) = (Fleet::new(1, true), Timestamp::default());
    fleet.on_start(1, now);
    fleet.scale(true);
    fleet.on_start(2, now);
    fleet.on_end(2, FAILED, now);
    assert_eq!(fleet.over(), None, "copy 1 serves");
    let later = now.later(PAUSE_MIN);
    assert!(fleet.wants_one(later), "and copy 2 is started again");
    fleet.on_start(3, later);
    fleet.scale(false);
    assert_eq!(fleet.take_excess(), [1]);
    fleet.on_end(3, FAILED, later);
    fleet.on_end(1, WELL, later);
    assert_eq!(fleet.over(), None);
    assert!(fleet.wants_one(later.later(PAUSE_MAX)), "copy 1 was told");
}

#[test]
fn a_program_that_cannot_be_executed_ends_the_parent_of_a_single_program_only() {
    let now = Timestamp::default();
    assert!(Fleet::new(1, true).on_failed_start(now));
    assert!(!Fleet::new(1, false).on_failed_start(now));
}
