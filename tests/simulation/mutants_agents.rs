//! Promises about questions to agents, broken on purpose, and their checkers fire.

use supervise::{
    supervisor::{
        action::{Action, AgentAsk},
        event::{Event, Oom},
        report::{Cause, Report},
        spec::Leaks,
    },
    units::Bytes,
};

use crate::mutants::{misled, tampered};

#[test]
fn a_second_question_before_the_first_answer_is_seen() {
    tampered("one-question", |turn, _| {
        let asked = |action: &&Action| matches!(action, Action::AskAgent { .. });
        let twice: Vec<_> = turn.actions.iter().filter(asked).cloned().collect();
        turn.actions.extend(twice);
    });
}

#[test]
fn a_rescue_that_is_none_is_seen() {
    tampered("rescued-stay", |turn, _| {
        let due = turn.reports.iter().find_map(|report| match report {
            Report::Due { worker, .. } => Some(*worker),
            _ => None,
        });
        turn.reports.extend(due.map(|worker| Report::Rescued {
            worker,
            freed: Bytes::mib(1),
            memory: Bytes::mib(1),
            times: 1,
        }));
    });
}

#[test]
fn a_recycle_without_garbage_collected_first_is_seen() {
    misled("explained", |spec| spec.memory.gc_first = false);
}

#[test]
fn a_recycle_without_a_report_is_seen() {
    misled("explained", |spec| spec.leaks.ask = Leaks::Off);
}

#[test]
fn a_serving_worker_that_is_asked_though_nobody_wished_it_is_seen() {
    misled("undisturbed", |spec| spec.leaks.ask = Leaks::On);
}

#[test]
fn tracing_far_below_the_ceiling_is_seen() {
    tampered("undisturbed", |turn, books| {
        if let Some(Event::Sampled { worker, .. }) = turn.event
            && let Some(seen) = books.workers.get(&worker).filter(|seen| seen.serves())
        {
            turn.reports.push(Report::Armed {
                worker,
                memory: seen.value().unwrap_or_default(),
                baseline: Bytes::ZERO,
            });
        }
    });
}

#[test]
fn a_question_that_copies_more_than_there_is_room_for_is_seen() {
    tampered("undisturbed", |turn, books| {
        for (worker, seen) in books.alive() {
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
fn an_end_at_the_cap_by_ending_that_counts_as_a_kill_is_seen() {
    tampered("one-cause", |turn, _| {
        let at_cap = matches!(turn.event, Some(Event::WorkerEnded { oom: Oom::Cap, .. }));
        for report in &mut turn.reports {
            if let Report::Ended(end) = report
                && at_cap
                && matches!(end.cause, Cause::Ceiling | Cause::Age)
            {
                end.cause = Cause::Cap;
            }
        }
    });
}

#[test]
fn a_recycle_before_its_number_of_tasks_is_seen() {
    misled("tasks", |spec| spec.recycle.max_tasks = Some(1));
}

#[test]
fn a_number_of_tasks_that_nobody_minds_is_seen() {
    misled("tasks", |spec| spec.recycle.max_tasks = None);
}

#[test]
fn a_window_that_stays_open_is_seen() {
    tampered("windows", |turn, _| {
        turn.actions.retain(|action| {
            let closes = |ask: &AgentAsk| matches!(ask, AgentAsk::Close | AgentAsk::Report { .. });
            !matches!(action, Action::AskAgent { ask, .. } if closes(ask))
        });
    });
}
