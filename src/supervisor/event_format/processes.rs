//! Sentences and fields of the events about the processes of a worker.

use super::{Field, Fields, sentences::text};
use crate::supervisor::event::{ProcessSize, SharedCeiling};

/// `w1: 6 processes share one ceiling of 400M and hold 768M (pid 12, `python load.py`: 152M ...`.
pub(super) fn shared_message(shared: &SharedCeiling) -> String {
    let SharedCeiling {
        worker,
        processes,
        memory,
        ceiling,
        guessed,
        largest,
    } = shared;
    let (then, hint) = if *guessed {
        let applies = "give a --ceiling for all of them together, or `--server none` if this one \
                       is meant for all of them";
        (
            "; it is not replaced for that while it starts, and only the budget limits it if it \
             needs that much"
                .to_owned(),
            format!("{applies}; `--server NAME` if it is a server"),
        )
    } else {
        (
            ", and are replaced together".to_owned(),
            "all processes that a worker starts belong to it: give a --ceiling for all of them \
             together"
                .to_owned(),
        )
    };
    format!(
        "{worker}: {processes} processes share one ceiling of {ceiling} and hold {memory} \
         ({}){then}. hint: {hint}",
        listed(largest, *processes)
    )
}

/// `pid 12, `python load.py`: 152M; pid 13, `python load.py`: 151M; 4 more`.
fn listed(largest: &[ProcessSize], processes: u32) -> String {
    let named = |one: &ProcessSize| format!("pid {}, `{}`: {}", one.pid, one.command, one.memory);
    let mut all: Vec<_> = largest.iter().map(named).collect();
    let others = usize::try_from(processes).unwrap_or(0);
    let others = others.saturating_sub(largest.len());
    if others > 0 {
        all.push(format!("{others} more"));
    }
    all.join("; ")
}

pub(super) fn shared_fields(shared: &SharedCeiling) -> Fields {
    vec![
        ("worker", text(&shared.worker)),
        ("processes", Field::Number(u64::from(shared.processes))),
        ("memory", Field::Bytes(shared.memory)),
        ("ceiling", Field::Bytes(shared.ceiling)),
        ("guessed", Field::Flag(shared.guessed)),
        ("largest", text(&listed(&shared.largest, shared.processes))),
    ]
}
