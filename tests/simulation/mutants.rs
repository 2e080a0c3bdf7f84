//! Each promise broken on purpose, and its checker fires.
//!
//! A decider is broken from outside in two ways: it is given other wishes than the checkers know
//! of ([`misled`]), or what passes between it and the world is changed ([`tampered`]).

use std::time::Duration;

use supervise::{
    supervisor::{
        action::{Action, Look},
        event::Event,
        report::{Cause, Report, Who},
        spec::{Leftovers, Limit, Spec},
    },
    units::{Bytes, Signal, Size},
};

use crate::{
    books::{Books, Seen, Turn},
    run::{NoTamper, Run, Tamper},
};

/// A broken promise shows within so many seeds.
const SEEDS: u64 = 600;

struct By<F>(F);

impl<F: FnMut(&mut Turn, &Books)> Tamper for By<F> {
    fn tamper(&mut self, turn: &mut Turn, books: &Books) {
        (self.0)(turn, books);
    }
}

fn fires(checker: &str, mut run: impl FnMut(u64) -> Option<&'static str>) {
    let fired = (0..SEEDS).any(|seed| run(seed) == Some(checker));
    assert!(fired, "{checker} saw nothing in {SEEDS} seeds");
}

/// The decider goes by other wishes than those it was given.
pub(crate) fn misled(checker: &str, mislead: impl Fn(&mut Spec)) {
    fires(checker, |seed| {
        let run = Run::new(seed).misled(&mislead);
        run.play(&mut NoTamper).err().map(|failure| failure.checker)
    });
}

/// What the decider says is changed before the checkers and the world get it.
pub(crate) fn tampered(checker: &str, tamper: impl Fn(&mut Turn, &Books)) {
    fires(checker, |seed| {
        let result = Run::new(seed).play(&mut By(&tamper));
        result.err().map(|failure| failure.checker)
    });
}

#[test]
fn more_than_at_once_are_seen() {
    misled("at-once", |spec| spec.recycle.at_once += 2);
}

#[test]
fn a_silent_request_to_go_is_seen() {
    tampered("at-once", |turn, _| {
        turn.reports
            .retain(|report| !matches!(report, Report::Draining { .. }));
    });
}

#[test]
fn leftovers_that_are_only_told_of_are_seen() {
    misled("leftovers", |spec| spec.recycle.leftovers = Leftovers::Tell);
}

#[test]
fn an_end_of_what_is_not_left_over_is_seen() {
    tampered("leftovers", |turn, _| {
        for action in &mut turn.actions {
            if let Action::EndLeftover { process, .. } = action {
                process.0 += 1000;
            }
        }
    });
}

#[test]
fn a_recycle_before_min_age_is_seen() {
    misled("min-age", |spec| spec.recycle.min_age = Duration::ZERO);
}

#[test]
fn a_raise_without_room_is_seen() {
    tampered("room", |turn, books| {
        let held = books.alive().filter_map(|(_, seen)| seen.value());
        let held = held.fold(Bytes::mib(20), Bytes::plus);
        let budget = books.limits.budget.bytes;
        if books.up && books.stopping.is_none() && budget.is_some_and(|budget| held > budget) {
            turn.actions.push(raise(books));
        }
    });
}

#[test]
fn jitter_beyond_its_part_is_seen() {
    misled("jitter", |spec| spec.recycle.jitter = 0.6);
}

#[test]
fn a_limit_that_jitter_raises_is_seen() {
    tampered("jitter", |turn, _| {
        for report in &mut turn.reports {
            if let Report::Due {
                cause: Cause::Ceiling,
                limit: Some(limit),
                memory,
                ..
            } = report
            {
                *limit = limit.scaled(2.0);
                *memory = *limit;
            }
        }
    });
}

#[test]
fn an_age_that_is_never_reached_is_seen() {
    misled("jitter", |spec| spec.recycle.max_age = None);
}

#[test]
fn too_few_strikes_are_seen() {
    misled("strikes", |spec| spec.memory.strikes = 1);
}

#[test]
fn a_ceiling_that_nobody_minds_is_seen() {
    misled("strikes", |spec| spec.memory.strikes = 1000);
}

#[test]
fn a_second_warning_of_a_fat_birth_is_seen() {
    tampered("born-fat", |turn, _| {
        let again: Vec<_> = turn
            .reports
            .iter()
            .filter(|report| matches!(report, Report::Warning(_)))
            .cloned()
            .collect();
        turn.reports.extend(again);
    });
}

#[test]
fn recycling_in_vain_without_end_is_seen() {
    // Every end by age is passed off for one by the ceiling, and so was its announcement.
    tampered("born-fat", |turn, _| {
        for report in &mut turn.reports {
            match report {
                Report::Ended(end) if end.cause == Cause::Age => end.cause = Cause::Ceiling,
                Report::Draining { cause, .. } if *cause == Cause::Age => *cause = Cause::Ceiling,
                _ => {}
            }
        }
    });
}

#[test]
fn a_recycle_that_gives_nothing_back_is_seen() {
    tampered("born-fat", |turn, _| {
        for report in &mut turn.reports {
            if let Report::Draining { cause, .. } = report
                && *cause == Cause::Age
            {
                *cause = Cause::Budget;
            }
        }
    });
}

#[test]
fn workers_that_cannot_start_without_a_word_are_seen() {
    tampered("cannot-start", |turn, _| {
        turn.reports.retain(
            |report| !matches!(report, Report::Warning(text) if text.contains("cannot start")),
        );
    });
}

#[test]
fn a_server_whose_workers_cannot_start_and_that_goes_on_is_seen() {
    tampered("cannot-start", |turn, books| {
        if books.stopping.is_none() && books.up {
            turn.actions
                .retain(|action| !matches!(action, Action::KillRun { .. }));
        }
    });
}

#[test]
fn recycles_in_vain_soon_after_the_start_are_seen() {
    // Every sample of a young worker shows it over its ceiling, so that it is never cured.
    misled("in-vain", |spec| {
        spec.recycle.min_age = Duration::ZERO;
        if let Limit::At(Size::Bytes(ceiling)) = &mut spec.memory.ceiling {
            *ceiling = ceiling.scaled(0.8);
        }
    });
}

#[test]
fn a_dry_run_that_acts_is_seen() {
    misled("dry-run", |spec| spec.dry_run = false);
}

#[test]
fn one_fewer_too_many_is_seen() {
    tampered("never-shrinks", |turn, books| {
        if turn.reports.contains(&Report::Lowered) {
            let (run, signal) = (books.run, Signal::TTOU);
            turn.actions.push(Action::SignalCommand { run, signal });
        }
    });
}

#[test]
fn a_fleet_that_grows_is_seen_in_the_end() {
    tampered("never-shrinks", |turn, books| {
        let told = |report: &Report| matches!(report, Report::Ready { .. } | Report::Limits(_));
        if books.up && turn.reports.iter().any(told) {
            turn.actions.push(raise(books));
        }
    });
}

fn raise(books: &Books) -> Action {
    Action::SignalCommand {
        run: books.run,
        signal: Signal::TTIN,
    }
}

/// Asks one more worker that serves to go.
fn send_away(turn: &mut Turn, books: &Books) {
    let gone = |worker| turn.drains().any(|(one, _)| one == worker);
    let mut serving = books.alive().filter(|(_, seen)| seen.serves());
    let Some((&worker, _)) = serving.find(|(worker, _)| !gone(**worker)) else {
        return;
    };
    let (cause, signal) = (Cause::Age, Signal::TERM);
    turn.reports.push(Report::Draining { worker, cause });
    turn.actions.push(Action::SignalWorker { worker, signal });
}

#[test]
fn a_recycle_after_a_failed_start_is_seen() {
    tampered("suspended", |turn, books| {
        let failed = |report: &Report| matches!(report, Report::Suspended { down: false, .. });
        if turn.reports.iter().any(failed) {
            send_away(turn, books);
        }
    });
}

/// The same with a worker that has its `min_age`, so that no other promise is broken.
fn send_away_of_age(turn: &mut Turn, books: &Books) {
    let min_age = books.spec.recycle.min_age;
    let mut serving = books.alive().filter(|(_, seen)| seen.serves());
    let of_age = serving
        .next()
        .is_some_and(|(_, seen)| turn.at.since(seen.at) > min_age);
    let acts = books.up && books.stopping.is_none() && !books.spec.dry_run;
    if acts && of_age && turn.drains().next().is_none() {
        send_away(turn, books);
    }
}

#[test]
fn a_recycle_of_a_program_that_its_last_recycle_took_down_is_seen() {
    tampered("suspended", |turn, books| {
        // A recycled one, one that was never ready, and the present one.
        let mut before = books.workers.values().rev().skip(1);
        let failed = before
            .next()
            .is_some_and(|one| one.ready.is_none() && one.draining.is_none());
        let down = failed && before.any(|one| one.draining.is_some());
        if !books.is_server() && down {
            send_away_of_age(turn, books);
        }
    });
}

/// Every worker is asked to go as soon as it has its `min_age`, and is killed after its grace,
/// whether others can start or not.
#[test]
fn a_recycle_of_all_that_serve_is_seen() {
    tampered("serves-on", |turn, books| {
        let at_once = usize::try_from(books.spec.recycle.at_once).unwrap();
        let starts = |seen: &Seen| seen.ready.is_none();
        let some_start = books.alive().any(|(_, seen)| starts(seen));
        let idle = turn.event == Some(Event::Deadline) && books.is_server();
        if !idle || books.alive().count() > at_once {
            return;
        }
        if !some_start {
            send_away_of_age(turn, books);
        }
        let is_late = |seen: &Seen| {
            let drain = seen.draining.filter(|(_, cause)| *cause == Cause::Age);
            drain.is_some_and(|(since, _)| turn.at.since(since) > books.spec.stop.grace)
        };
        let late = books.alive().filter(|(_, seen)| is_late(seen));
        let kills = late.map(|(&worker, _)| Action::KillWorker { worker });
        let kills: Vec<_> = kills.filter(|kill| !turn.actions.contains(kill)).collect();
        turn.actions.extend(kills);
    });
}

#[test]
fn a_wrong_cause_is_seen() {
    tampered("one-cause", |turn, _| {
        for report in &mut turn.reports {
            if let Report::Ended(end) = report
                && end.cause == Cause::Cap
            {
                end.cause = Cause::Oom;
            }
        }
    });
}

#[test]
fn a_missing_end_is_seen() {
    tampered("one-cause", |turn, _| {
        turn.reports
            .retain(|report| !matches!(report, Report::Ended(end) if end.who != Who::Server));
    });
}

#[test]
fn a_second_end_is_seen() {
    tampered("one-cause", |turn, _| {
        let ends: Vec<_> = turn
            .reports
            .iter()
            .filter(|report| matches!(report, Report::Ended(_)))
            .cloned()
            .collect();
        turn.reports.extend(ends);
    });
}

#[test]
fn what_is_asked_of_the_dead_is_seen() {
    tampered("the-dead", |turn, _| {
        if let Some(Event::WorkerEnded { worker, .. }) = turn.event {
            let how = Look::Cheap;
            turn.actions.push(Action::Look { worker, how });
        }
    });
}

#[test]
fn what_is_asked_of_a_run_that_is_over_is_seen() {
    tampered("the-dead", |turn, _| {
        if let Some(Event::CommandEnded { run, .. }) = turn.event {
            let signal = Signal::TERM;
            turn.actions.push(Action::SignalCommand { run, signal });
        }
    });
}

#[test]
fn an_early_kill_is_seen() {
    misled("grace", |spec| spec.stop.grace /= 4);
}

#[test]
fn a_kill_of_who_was_never_asked_is_seen() {
    tampered("grace", |turn, books| {
        if let Some((worker, _)) = books.alive().find(|(_, seen)| seen.serves()) {
            turn.actions.push(Action::KillWorker { worker: *worker });
        }
    });
}

#[test]
fn a_run_that_is_killed_too_early_is_seen() {
    tampered("grace", |turn, books| {
        if turn.reports.contains(&Report::Stopping) && books.up {
            turn.actions.push(Action::KillRun { run: books.run });
        }
    });
}

#[test]
fn a_command_that_is_not_told_to_stop_is_seen() {
    tampered("told", |turn, books| {
        let stop = books.spec.stop.signal;
        let waits = matches!(
            turn.event,
            Some(Event::BacklogEmpty { .. } | Event::Deadline)
        );
        turn.actions.retain(|action| {
            !matches!(action, Action::SignalCommand { signal, .. } if waits && *signal == stop)
        });
    });
}

#[test]
fn a_swallowed_reply_is_seen() {
    tampered("replies", |turn, _| {
        turn.actions
            .retain(|action| !matches!(action, Action::Reply { .. }));
    });
}

#[test]
fn a_second_reply_is_seen() {
    tampered("replies", |turn, _| {
        let replies: Vec<_> = turn
            .actions
            .iter()
            .filter(|action| matches!(action, Action::Reply { .. }))
            .cloned()
            .collect();
        turn.actions.extend(replies);
    });
}

#[test]
fn a_start_too_soon_is_seen() {
    misled("restarts", |spec| {
        spec.restart.delay_min = Duration::from_millis(1);
        spec.restart.delay_max = Duration::from_millis(2);
    });
}

#[test]
fn one_start_too_many_is_seen() {
    misled("restarts", |spec| spec.restart.limit += 1000);
}

#[test]
fn a_drain_without_end_is_seen() {
    tampered("settles", |turn, _| {
        turn.actions
            .retain(|action| !matches!(action, Action::KillWorker { .. }));
    });
}

#[test]
fn endless_talk_is_seen() {
    tampered("chatter", |turn, _| {
        let looks: Vec<_> = turn
            .actions
            .iter()
            .filter(|action| matches!(action, Action::Look { .. }))
            .cloned()
            .collect();
        let again = looks.iter().cycle().take(looks.len() * 600).cloned();
        turn.actions.extend(again);
    });
}
