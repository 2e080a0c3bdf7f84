//! Breaks each promise on purpose and expects its checker to fail.
//!
//! The decider is broken from outside in two ways: it gets other settings than the checkers
//! ([`misconfigured`]), or its actions and events are changed ([`tampered`]).

use std::time::Duration;

use supervise::{
    supervisor::{
        action::{Action, SampleKind},
        cause::{Cause, Class},
        event::{Event, Who},
        input::Input,
        spec::{Leftovers, Limit, Spec},
    },
    units::{Bytes, Signal, Size},
};

use crate::{
    record::{Record, Seen, Turn},
    run::{NoTamper, Run, Tamper},
};

/// A broken promise must show within this number of seeds.
const SEEDS: u64 = 600;

struct By<F>(F);

impl<F: FnMut(&mut Turn, &Record)> Tamper for By<F> {
    fn tamper(&mut self, turn: &mut Turn, record: &Record) {
        (self.0)(turn, record);
    }
}

fn fires(checker: &str, mut run: impl FnMut(u64) -> Option<&'static str>) {
    let fired = (0..SEEDS).any(|seed| run(seed) == Some(checker));
    assert!(fired, "{checker} saw nothing in {SEEDS} seeds");
}

/// Expects `checker` to fail when the decider has other settings than the checkers.
pub(crate) fn misconfigured(checker: &str, misconfigure: impl Fn(&mut Spec)) {
    fires(checker, |seed| {
        let run = Run::new(seed).misconfigured(&misconfigure);
        run.play(&mut NoTamper).err().map(|failure| failure.checker)
    });
}

/// Expects `checker` to fail when the decider's output is changed before the checkers and the world
/// get it.
pub(crate) fn tampered(checker: &str, tamper: impl Fn(&mut Turn, &Record)) {
    fires(checker, |seed| {
        let result = Run::new(seed).play(&mut By(&tamper));
        result.err().map(|failure| failure.checker)
    });
}

#[test]
fn more_unavailable_workers_than_allowed_are_detected() {
    misconfigured("max-unavailable", |spec| spec.recycle.max_unavailable += 2);
}

#[test]
fn a_drain_without_an_event_is_detected() {
    tampered("max-unavailable", |turn, _| {
        turn.events
            .retain(|event| !matches!(event, Event::Draining { .. }));
    });
}

#[test]
fn leftovers_that_are_not_ended_are_detected() {
    misconfigured("leftovers", |spec| spec.recycle.leftovers = Leftovers::Tell);
}

#[test]
fn ending_a_process_that_is_no_leftover_is_detected() {
    tampered("leftovers", |turn, _| {
        for action in &mut turn.actions {
            if let Action::EndLeftover { process, .. } = action {
                process.0 += 1000;
            }
        }
    });
}

#[test]
fn a_recycle_before_min_age_is_detected() {
    misconfigured("min-age", |spec| spec.recycle.min_age = Duration::ZERO);
}

#[test]
fn a_surge_worker_over_the_budget_is_detected() {
    tampered("room", |turn, record| {
        let held = record.alive().filter_map(|(_, seen)| seen.value());
        let held = held.fold(Bytes::mib(20), Bytes::plus);
        let budget = record.limits.budget.bytes;
        if record.up && record.stopping.is_none() && budget.is_some_and(|budget| held > budget) {
            turn.actions.push(start_surge_worker(record));
        }
    });
}

#[test]
fn jitter_beyond_its_configured_part_is_detected() {
    misconfigured("jitter", |spec| spec.recycle.jitter = 0.6);
}

#[test]
fn a_limit_raised_by_jitter_is_detected() {
    tampered("jitter", |turn, _| {
        for event in &mut turn.events {
            if let Event::Due {
                cause: Cause::Ceiling,
                limit: Some(limit),
                memory,
                ..
            } = event
            {
                *limit = limit.scaled(2.0);
                *memory = *limit;
            }
        }
    });
}

#[test]
fn a_worker_kept_past_max_age_is_detected() {
    misconfigured("jitter", |spec| spec.recycle.max_age = None);
}

#[test]
fn a_recycle_after_too_few_samples_is_detected() {
    misconfigured("consecutive-samples", |spec| {
        spec.memory.consecutive_samples = 1
    });
}

#[test]
fn a_worker_kept_over_its_ceiling_is_detected() {
    misconfigured("consecutive-samples", |spec| {
        spec.memory.consecutive_samples = 1000
    });
}

#[test]
fn a_second_warning_that_recycling_cannot_help_is_detected() {
    tampered("over-at-start", |turn, _| {
        let again: Vec<_> = turn
            .events
            .iter()
            .filter(|event| matches!(event, Event::Warning(_)))
            .cloned()
            .collect();
        turn.events.extend(again);
    });
}

#[test]
fn endless_recycling_of_workers_that_do_not_grow_is_detected() {
    // Every drain and end by age gets the cause `Ceiling`.
    tampered("over-at-start", |turn, _| {
        for event in &mut turn.events {
            match event {
                Event::Ended(end) if end.cause == Cause::Age => end.cause = Cause::Ceiling,
                Event::Draining { cause, .. } if *cause == Cause::Age => *cause = Cause::Ceiling,
                _ => {}
            }
        }
    });
}

#[test]
fn a_recycle_by_budget_that_frees_nothing_is_detected() {
    tampered("over-at-start", |turn, _| {
        for event in &mut turn.events {
            if let Event::Draining { cause, .. } = event
                && *cause == Cause::Age
            {
                *cause = Cause::Budget;
            }
        }
    });
}

#[test]
fn a_missing_warning_that_workers_cannot_start_is_detected() {
    tampered("cannot-start", |turn, _| {
        turn.events.retain(
            |event| !matches!(event, Event::Warning(text) if text.contains("cannot start")),
        );
    });
}

#[test]
fn a_server_kept_although_its_workers_cannot_start_is_detected() {
    tampered("cannot-start", |turn, record| {
        if record.stopping.is_none() && record.up {
            turn.actions
                .retain(|action| !matches!(action, Action::KillRun { .. }));
        }
    });
}

#[test]
fn endless_recycling_soon_after_the_start_is_detected() {
    // Every sample of a young worker is over its ceiling, so that no recycle helps.
    misconfigured("recycle-loop", |spec| {
        spec.recycle.min_age = Duration::ZERO;
        if let Limit::At(Size::Bytes(ceiling)) = &mut spec.memory.ceiling {
            *ceiling = ceiling.scaled(0.8);
        }
    });
}

#[test]
fn a_dry_run_that_recycles_is_detected() {
    misconfigured("dry-run", |spec| spec.dry_run = false);
}

#[test]
fn retiring_one_worker_too_many_is_detected() {
    tampered("never-shrinks", |turn, record| {
        if turn.events.contains(&Event::Lowered) {
            let (run, signal) = (record.run, Signal::TTOU);
            turn.actions.push(Action::SignalCommand { run, signal });
        }
    });
}

#[test]
fn surge_workers_that_are_never_retired_are_detected() {
    tampered("never-shrinks", |turn, record| {
        let told = |event: &Event| matches!(event, Event::Ready { .. } | Event::Limits(_));
        if record.up && turn.events.iter().any(told) {
            turn.actions.push(start_surge_worker(record));
        }
    });
}

fn start_surge_worker(record: &Record) -> Action {
    Action::SignalCommand {
        run: record.run,
        signal: Signal::TTIN,
    }
}

/// Drains one more serving worker.
fn drain_another(turn: &mut Turn, record: &Record) {
    let gone = |worker| turn.drains().any(|(one, _)| one == worker);
    let mut serving = record.alive().filter(|(_, seen)| seen.serves());
    let Some((&worker, _)) = serving.find(|(worker, _)| !gone(**worker)) else {
        return;
    };
    let (cause, signal) = (Cause::Age, Signal::TERM);
    turn.events.push(Event::Draining { worker, cause });
    turn.actions.push(Action::SignalWorker { worker, signal });
}

#[test]
fn a_recycle_after_a_failed_start_is_detected() {
    tampered("suspended", |turn, record| {
        let failed = |event: &Event| matches!(event, Event::Suspended { down: false, .. });
        if turn.events.iter().any(failed) {
            drain_another(turn, record);
        }
    });
}

/// The same for a worker older than `min_age`, so that no other promise is broken.
fn drain_another_of_min_age(turn: &mut Turn, record: &Record) {
    let min_age = record.spec.recycle.min_age;
    let mut serving = record.alive().filter(|(_, seen)| seen.serves());
    let of_age = serving
        .next()
        .is_some_and(|(_, seen)| turn.at.since(seen.at) > min_age);
    let acts = record.up && record.stopping.is_none() && !record.spec.dry_run;
    if acts && of_age && turn.drains().next().is_none() {
        drain_another(turn, record);
    }
}

#[test]
fn recycling_a_program_that_the_last_recycle_took_down_is_detected() {
    tampered("suspended", |turn, record| {
        // The last three workers: a recycled one, one that was never ready, and the present one.
        let mut before = record.workers.values().rev().skip(1);
        let failed = before
            .next()
            .is_some_and(|one| one.ready.is_none() && one.draining.is_none());
        let down = failed && before.any(|one| one.draining.is_some());
        if !record.is_server() && down {
            drain_another_of_min_age(turn, record);
        }
    });
}

/// Drains every worker once it has reached `min_age`, and kills it after its grace period, whether
/// others can start or not.
#[test]
fn recycling_all_serving_workers_is_detected() {
    tampered("serves-on", |turn, record| {
        let at_once = usize::try_from(record.spec.recycle.max_unavailable).unwrap();
        let starts = |seen: &Seen| seen.ready.is_none();
        let some_start = record.alive().any(|(_, seen)| starts(seen));
        let idle = turn.input == Some(Input::Deadline) && record.is_server();
        if !idle || record.alive().count() > at_once {
            return;
        }
        if !some_start {
            drain_another_of_min_age(turn, record);
        }
        let is_late = |seen: &Seen| {
            let drain = seen.draining.filter(|(_, cause)| *cause == Cause::Age);
            drain.is_some_and(|(since, _)| turn.at.since(since) > record.spec.stop.grace)
        };
        let late = record.alive().filter(|(_, seen)| is_late(seen));
        let kills = late.map(|(&worker, _)| Action::KillWorker { worker });
        let kills: Vec<_> = kills.filter(|kill| !turn.actions.contains(kill)).collect();
        turn.actions.extend(kills);
    });
}

#[test]
fn a_wrong_cause_is_detected() {
    tampered("one-cause", |turn, _| {
        for event in &mut turn.events {
            if let Event::Ended(end) = event
                && end.cause == Cause::Cap
            {
                end.cause = Cause::Oom;
            }
        }
    });
}

#[test]
fn a_kernel_kill_with_a_cause_of_another_class_is_detected() {
    for cause in [Cause::Signal(Signal::KILL), Cause::Ceiling, Cause::Request] {
        tampered("one-cause", move |turn, _| {
            for event in &mut turn.events {
                if let Event::Ended(end) = event
                    && end.cause.class() == Class::Kernel
                {
                    end.cause = cause;
                }
            }
        });
    }
}

#[test]
fn an_exit_with_a_cause_of_another_class_is_detected() {
    for cause in [Cause::Oom, Cause::Ceiling, Cause::Request] {
        tampered("one-cause", move |turn, _| {
            for event in &mut turn.events {
                if let Event::Ended(end) = event
                    && matches!(end.cause, Cause::Signal(_) | Cause::Exit(_))
                {
                    end.cause = cause;
                }
            }
        });
    }
}

#[test]
fn a_missing_end_event_is_detected() {
    tampered("one-cause", |turn, _| {
        turn.events
            .retain(|event| !matches!(event, Event::Ended(end) if end.who != Who::Server));
    });
}

#[test]
fn a_second_end_event_is_detected() {
    tampered("one-cause", |turn, _| {
        let ends: Vec<_> = turn
            .events
            .iter()
            .filter(|event| matches!(event, Event::Ended(_)))
            .cloned()
            .collect();
        turn.events.extend(ends);
    });
}

#[test]
fn an_action_on_an_ended_worker_is_detected() {
    tampered("gone-targets", |turn, _| {
        if let Some(Input::WorkerEnded { worker, .. }) = turn.input {
            let how = SampleKind::Cheap;
            turn.actions.push(Action::Sample { worker, how });
        }
    });
}

#[test]
fn an_action_on_an_ended_run_is_detected() {
    tampered("gone-targets", |turn, _| {
        if let Some(Input::CommandEnded { run, .. }) = turn.input {
            let signal = Signal::TERM;
            turn.actions.push(Action::SignalCommand { run, signal });
        }
    });
}

#[test]
fn a_kill_before_the_grace_period_is_over_is_detected() {
    misconfigured("grace", |spec| spec.stop.grace /= 4);
}

#[test]
fn a_kill_without_a_stop_signal_is_detected() {
    tampered("grace", |turn, record| {
        if let Some((worker, _)) = record.alive().find(|(_, seen)| seen.serves()) {
            turn.actions.push(Action::KillWorker { worker: *worker });
        }
    });
}

#[test]
fn killing_a_run_too_early_is_detected() {
    tampered("grace", |turn, record| {
        if turn.events.contains(&Event::Stopping) && record.up {
            turn.actions.push(Action::KillRun { run: record.run });
        }
    });
}

#[test]
fn a_missing_stop_signal_to_the_command_is_detected() {
    tampered("stop-signal", |turn, record| {
        let stop = record.spec.stop.signal;
        let waits = matches!(
            turn.input,
            Some(Input::BacklogEmpty { .. } | Input::Deadline)
        );
        turn.actions.retain(|action| {
            !matches!(action, Action::SignalCommand { signal, .. } if waits && *signal == stop)
        });
    });
}

#[test]
fn a_missing_reply_is_detected() {
    tampered("replies", |turn, _| {
        turn.actions
            .retain(|action| !matches!(action, Action::Reply { .. }));
    });
}

#[test]
fn a_second_reply_is_detected() {
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
fn a_restart_before_its_delay_is_detected() {
    misconfigured("restarts", |spec| {
        spec.restart.delay_min = Duration::from_millis(1);
        spec.restart.delay_max = Duration::from_millis(2);
    });
}

#[test]
fn a_restart_over_the_limit_is_detected() {
    misconfigured("restarts", |spec| spec.restart.limit += 1000);
}

#[test]
fn an_endless_drain_is_detected() {
    tampered("settles", |turn, _| {
        turn.actions
            .retain(|action| !matches!(action, Action::KillWorker { .. }));
    });
}

#[test]
fn too_many_actions_are_detected() {
    tampered("chatter", |turn, _| {
        let looks: Vec<_> = turn
            .actions
            .iter()
            .filter(|action| matches!(action, Action::Sample { .. }))
            .cloned()
            .collect();
        let again = looks.iter().cycle().take(looks.len() * 600).cloned();
        turn.actions.extend(again);
    });
}
