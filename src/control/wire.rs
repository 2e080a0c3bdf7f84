//! Documents as they travel. They stay still while the inside moves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::supervisor::tell::{Fact, Told};

/// `GET /v1/status` (DESIGN §8). Sizes are bytes, `at` and `started` Unix seconds, `_s` seconds.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which says what they hold"
)]
pub struct Status {
    pub name: String,
    pub pid: u32,
    pub version: String,
    pub started: f64,
    #[serde(default)]
    pub upgrades: UpgradesDoc,
    pub mode: String,
    pub command_pid: Option<i32>,
    pub ready: bool,
    pub stopping: bool,
    #[serde(default)]
    pub problem: Option<String>,
    pub caps: CapsDoc,
    pub limits: LimitsDoc,
    pub workers: Vec<WorkerDoc>,
    #[serde(default)]
    pub recycling: RecyclingDoc,
    #[serde(default)]
    pub leftovers: Vec<LeftoverDoc>,
    pub totals: TotalsDoc,
    pub ends: Vec<EndDoc>,
}

/// How often another binary has taken over, and how often one that was asked to could not:
/// `failed_why` is why the last of them could not.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[expect(missing_docs, reason = "said above")]
pub struct UpgradesDoc {
    pub done: u64,
    pub failed: u64,
    pub failed_why: Option<String>,
}

/// Whether recycling is suspended, why and for how long, and how many starts in a row have failed.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[expect(missing_docs, reason = "said above")]
pub struct RecyclingDoc {
    pub suspended: bool,
    pub why: Option<String>,
    pub suspended_s: Option<f64>,
    pub failed_in_a_row: u32,
}

/// What holds a cap.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which says what they hold"
)]
pub struct CapsDoc {
    pub mechanism: Mechanism,
    pub enforced: bool,
    pub why_not: Option<String>,
    pub wire: bool,
}

/// The name of what holds a cap.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[expect(missing_docs, reason = "each is named as what it stands for")]
pub enum Mechanism {
    #[serde(rename = "cgroup-v2")]
    CgroupV2,
    #[serde(rename = "cgroup-v1")]
    CgroupV1,
    #[serde(rename = "rlimit")]
    Rlimit,
}

/// The limits in force.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which says what they hold"
)]
pub struct LimitsDoc {
    pub measure: String,
    pub available: u64,
    pub ceiling: LimitDoc,
    pub cap: LimitDoc,
    pub budget: LimitDoc,
}

/// One limit; `bytes` is null when it is off.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which says what they hold"
)]
pub struct LimitDoc {
    pub bytes: Option<u64>,
    pub from: String,
}

/// One live worker.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which says what they hold"
)]
pub struct WorkerDoc {
    pub id: String,
    pub pid: i32,
    pub slot: u32,
    pub state: String,
    pub age_s: f64,
    pub tasks: Option<u64>,
    pub tasks_per_s: Option<f64>,
    pub bytes_per_task: Option<f64>,
    #[serde(default)]
    pub agent: AgentDoc,
    pub agent_why_not: Option<String>,
    #[serde(default)]
    pub traced: bool,
    #[serde(default)]
    pub rescues: u32,
    pub processes: u32,
    pub memory: MemoryDoc,
}

/// A process that outlived its worker, with its descendants.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which says what they hold"
)]
pub struct LeftoverDoc {
    pub worker: String,
    pub pid: i32,
    pub command: String,
    pub memory: u64,
    pub processes: u32,
    pub idle_s: f64,
}

/// Whether a worker can be asked; `agent_why_not` beside it says why it is absent.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is named as what it stands for")]
pub enum AgentDoc {
    #[default]
    Unknown,
    Loaded,
    Absent,
}

/// One worker's memory.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which says what they hold"
)]
pub struct MemoryDoc {
    pub private: u64,
    pub rss: u64,
    pub pss: Option<u64>,
    pub cgroup: Option<u64>,
    pub peak: u64,
    pub baseline: Option<u64>,
    pub slope_bps: Option<f64>,
    pub to_ceiling_s: Option<f64>,
}

/// Sums since the supervisor's start: `recycles` are planned ends by cause, `ends` all others.
/// `rescues` are workers that gave enough back at their ceiling and stayed, `leftovers_ended` are
/// processes that outlived their worker and were ended. `tasks` and `requests`
/// are null where nobody counts them.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which says what they hold"
)]
pub struct TotalsDoc {
    pub recycles: BTreeMap<String, u64>,
    pub ends: BTreeMap<String, u64>,
    pub restarts: u64,
    #[serde(default)]
    pub rescues: u64,
    #[serde(default)]
    pub failed_starts: u64,
    #[serde(default)]
    pub leftovers_ended: u64,
    pub tasks: Option<u64>,
    pub requests: Option<u64>,
}

/// One end. `worker` is `server` for the wrapped server's own main process.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which says what they hold"
)]
pub struct EndDoc {
    pub worker: String,
    pub pid: i32,
    pub cause: String,
    pub memory: u64,
    pub peak: u64,
    pub limit: Option<u64>,
    pub age_s: f64,
    pub tasks: Option<u64>,
    pub drain_s: Option<f64>,
    pub killed: bool,
    pub at: f64,
    pub report: Option<String>,
}

/// One event, its figures beside it (docs/events.md).
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(missing_docs, reason = "docs/events.md says what they hold")]
pub struct EventDoc {
    pub id: u64,
    pub at: f64,
    pub mono_ns: u64,
    pub event: String,
    pub message: String,
    #[serde(flatten)]
    pub facts: Map<String, Value>,
}

impl From<&Told> for EventDoc {
    fn from(told: &Told) -> Self {
        let facts = told.report.facts().into_iter();
        Self {
            id: told.id,
            at: millis(told.at),
            mono_ns: told.mono_ns,
            event: told.report.kind().to_owned(),
            message: told.report.message(),
            facts: facts
                .map(|(name, fact)| (name.to_owned(), value(fact)))
                .collect(),
        }
    }
}

fn value(fact: Fact) -> Value {
    match fact {
        Fact::Text(text) => text.into(),
        Fact::Bytes(bytes) => bytes.get().into(),
        Fact::Seconds(time) => millis(time.as_secs_f64()).into(),
        Fact::Number(number) => number.into(),
        Fact::Flag(flag) => flag.into(),
    }
}

/// Milliseconds are as fine as anybody reads.
pub(super) fn millis(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use crate::{supervisor::tell::samples, units::golden};

    use super::*;

    #[test]
    fn an_event_has_the_kind_and_the_facts_that_are_promised() {
        let mut id = 0;
        let lines = samples::all().into_iter().map(|report| {
            id += 1;
            let (at, mono_ns) = (12.5, 7);
            let told = Told {
                id,
                at,
                mono_ns,
                report,
            };
            let event = EventDoc::from(&told);
            let text = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<EventDoc>(&text).unwrap(), event);
            text + "\n"
        });
        golden::check("events.jsonl", &lines.collect::<String>());
    }
}
