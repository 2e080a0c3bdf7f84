//! Breaks the promises about requests to agents on purpose and expects their checkers to fail.

use supervise::{
    supervisor::{
        action::{Action, AgentAsk, ReportWhen},
        cause::Cause,
        event::{Event, Who},
        input::{Input, Oom},
        spec::Leaks,
    },
    units::Bytes,
};

use crate::mutants::{misconfigured, tampered};

#[test]
fn a_second_request_before_the_first_answer_is_detected() {
    tampered("one-request", |turn, _| {
        let asked = |action: &&Action| matches!(action, Action::AskAgent { .. });
        let twice: Vec<_> = turn.actions.iter().filter(asked).cloned().collect();
        turn.actions.extend(twice);
    });
}

#[test]
fn a_rescue_that_freed_nothing_is_detected() {
    tampered("rescued-stays", |turn, _| {
        let due = turn.events.iter().find_map(|event| match event {
            Event::Due { worker, .. } => Some(*worker),
            _ => None,
        });
        turn.events.extend(due.map(|worker| Event::Rescued {
            worker,
            freed: Bytes::mib(1),
            memory: Bytes::mib(1),
            times: 1,
        }));
    });
}

#[test]
fn a_recycle_without_a_garbage_collection_first_is_detected() {
    misconfigured("explained", |spec| spec.memory.gc_first = false);
}

#[test]
fn a_recycle_without_a_report_is_detected() {
    misconfigured("explained", |spec| spec.leaks.ask = Leaks::Off);
}

#[test]
fn a_request_that_is_not_configured_is_detected() {
    misconfigured("undisturbed", |spec| spec.leaks.ask = Leaks::On);
}

#[test]
fn a_last_report_that_others_wait_for_is_detected() {
    tampered("no-worker-waits", |turn, _| {
        let withdraws = |action: &Action| matches!(action, Action::WithdrawReport { .. });
        turn.actions.retain(|action| !withdraws(action));
    });
}

#[test]
fn a_report_that_interrupts_a_worker_that_serves_is_detected() {
    tampered("undisturbed", |turn, _| {
        for action in &mut turn.actions {
            if let Action::AskAgent {
                ask: AgentAsk::Report { when, .. },
                ..
            } = action
            {
                *when = ReportWhen::Now;
            }
        }
    });
}

#[test]
fn tracing_far_below_the_ceiling_is_detected() {
    tampered("undisturbed", |turn, record| {
        if let Some(Input::Sampled { worker, .. }) = turn.input
            && let Some(seen) = record.workers.get(&worker).filter(|seen| seen.serves())
        {
            turn.events.push(Event::Armed {
                worker,
                memory: seen.value().unwrap_or_default(),
                baseline: Bytes::ZERO,
            });
        }
    });
}

#[test]
fn a_request_that_copies_more_than_the_free_room_is_detected() {
    tampered("undisturbed", |turn, record| {
        for (worker, seen) in record.alive() {
            let (shared, _) = seen.shared();
            if seen.serves() && shared > Bytes::mib(100) {
                let ask = AgentAsk::Collect;
                turn.actions.push(Action::AskAgent {
                    worker: *worker,
                    ask,
                });
            }
        }
    });
}

#[test]
fn a_cap_kill_while_exiting_with_the_cause_cap_is_detected() {
    tampered("one-cause", |turn, _| {
        let at_cap = matches!(turn.input, Some(Input::WorkerEnded { oom: Oom::Cap, .. }));
        for event in &mut turn.events {
            if let Event::Ended(end) = event
                && at_cap
                && matches!(end.cause, Cause::Ceiling | Cause::Age)
            {
                end.cause = Cause::Cap;
            }
        }
    });
}

#[test]
fn an_end_at_the_cap_by_growth_that_counts_as_a_copy_is_detected() {
    tampered("one-cause", |turn, record| {
        for event in &mut turn.events {
            if let Event::Ended(end) = event
                && end.cause == Cause::Cap
                && let Who::Worker(worker) = end.who
                && let Some(seen) = record.workers.get(&worker)
                && let Some((_, cause)) = seen.draining
                && let Some(cap) = record.cap()
                && let (shared, private) = seen.shared()
                && private < cap
                && private.plus(shared) >= cap
            {
                end.cause = cause;
            }
        }
    });
}

#[test]
fn a_recycle_before_max_tasks_is_detected() {
    misconfigured("tasks", |spec| spec.recycle.max_tasks = Some(1));
}

#[test]
fn a_worker_kept_past_max_tasks_is_detected() {
    misconfigured("tasks", |spec| spec.recycle.max_tasks = None);
}

#[test]
fn a_tracing_window_that_stays_open_is_detected() {
    tampered("windows", |turn, _| {
        turn.actions.retain(|action| {
            let closes = |ask: &AgentAsk| matches!(ask, AgentAsk::Close | AgentAsk::Report { .. });
            !matches!(action, Action::AskAgent { ask, .. } if closes(ask))
        });
    });
}
