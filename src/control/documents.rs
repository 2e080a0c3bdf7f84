//! The JSON documents of the control API. Their fields are stable; the types in this code may
//! change.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::supervisor::event_format::{EventRecord, Field};

/// `GET /v1/status` (DESIGN §8). Sizes are bytes, `at` and `started` Unix seconds, `_s` seconds.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which documents them"
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
    pub killed_in_s: Option<f64>,
    #[serde(default)]
    pub status_text: Option<String>,
    #[serde(default)]
    pub problem: Option<String>,
    pub caps: CapsDoc,
    pub limits: LimitsDoc,
    pub workers: Vec<WorkerDoc>,
    #[serde(default)]
    pub recycling: RecyclingDoc,
    #[serde(default)]
    pub helpers: Vec<HelperDoc>,
    #[serde(default)]
    pub helpers_limited: bool,
    #[serde(default)]
    pub leftovers: Vec<LeftoverDoc>,
    pub totals: TotalsDoc,
    #[serde(default)]
    pub routes: Vec<RouteDoc>,
    #[serde(default)]
    pub pool: Option<PoolDoc>,
    pub ends: Vec<EndDoc>,
}

/// The number of upgrades that succeeded and that failed; `failed_why` is the reason of the last
/// failure.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[expect(missing_docs, reason = "documented above")]
pub struct UpgradesDoc {
    pub done: u64,
    pub failed: u64,
    pub failed_why: Option<String>,
}

/// Whether recycling is suspended, why and for how long, and how many starts in a row have failed.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[expect(missing_docs, reason = "documented above")]
pub struct RecyclingDoc {
    pub suspended: bool,
    pub why: Option<String>,
    pub suspended_s: Option<f64>,
    pub failed_in_a_row: u32,
}

/// How caps are enforced.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which documents them"
)]
pub struct CapsDoc {
    pub mechanism: Mechanism,
    pub enforced: bool,
    pub why_not: Option<String>,
    pub wire: bool,
}

/// The mechanism that enforces a cap.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names explain themselves")]
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
    reason = "fields are named as in the snapshot, which documents them"
)]
pub struct LimitsDoc {
    pub measure: String,
    pub available: u64,
    pub ceiling: LimitDoc,
    pub cap: LimitDoc,
    pub budget: LimitDoc,
}

/// One limit; `bytes` is null if it is off.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which documents them"
)]
pub struct LimitDoc {
    pub bytes: Option<u64>,
    pub from: String,
}

/// One running worker.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which documents them"
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
    #[serde(default)]
    pub status_text: Option<String>,
    #[serde(default)]
    pub killed_in_s: Option<f64>,
    pub memory: MemoryDoc,
}

/// A process of a server that is neither its main process nor a worker.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which documents them"
)]
pub struct HelperDoc {
    pub pid: i32,
    pub name: String,
    pub command: String,
    pub memory: u64,
}

/// A process that outlived its worker, with its descendants.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which documents them"
)]
pub struct LeftoverDoc {
    pub worker: String,
    pub pid: i32,
    pub command: String,
    pub memory: u64,
    pub processes: u32,
    pub idle_s: f64,
}

/// Whether a worker has an agent; `agent_why_not` is the reason why it is absent.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names explain themselves")]
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
    reason = "fields are named as in the snapshot, which documents them"
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

/// Totals since the supervisor's start: `recycles` are planned ends by cause, `ends` all others.
/// `rescues` are workers that freed enough memory at their ceiling to be kept, `leftovers_ended`
/// are processes that outlived their worker and were ended. `tasks` and `requests` are null if they
/// are not counted.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which documents them"
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

/// A route, in all workers together.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which documents them"
)]
pub struct RouteDoc {
    pub route: String,
    pub requests: u64,
    pub growth_bytes: u64,
    pub per_request: u64,
    pub share: f64,
    pub certain: bool,
}

/// The tasks of a pool. `waiting` tasks were read and have not begun. `abandoned` tasks had begun
/// when the pool stopped, and have no result.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which documents them"
)]
pub struct PoolDoc {
    pub function: Option<String>,
    pub done: u64,
    pub failed: u64,
    pub running: u64,
    pub waiting: u64,
    pub abandoned: u64,
}

/// One end. `worker` is `server` for the wrapped server's own main process.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "fields are named as in the snapshot, which documents them"
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

/// One event, with its fields (docs/events.md).
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(missing_docs, reason = "docs/events.md documents the fields")]
pub struct EventDoc {
    pub id: u64,
    pub at: f64,
    pub mono_ns: u64,
    pub event: String,
    pub message: String,
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

impl From<&EventRecord> for EventDoc {
    fn from(record: &EventRecord) -> Self {
        let fields = record.event.fields().into_iter();
        Self {
            id: record.id,
            at: millis(record.at),
            mono_ns: record.mono_ns,
            event: record.event.kind().to_owned(),
            message: record.event.message(),
            fields: fields
                .map(|(name, field)| (name.to_owned(), json_value(field)))
                .collect(),
        }
    }
}

fn json_value(field: Field) -> Value {
    match field {
        Field::Text(text) => text.into(),
        Field::Bytes(bytes) => bytes.get().into(),
        Field::Seconds(time) => millis(time.as_secs_f64()).into(),
        Field::Number(number) => number.into(),
        Field::Flag(flag) => flag.into(),
    }
}

/// Rounds to milliseconds, so that the documents stay readable.
pub(super) fn millis(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use crate::{supervisor::event_format::samples, units::golden};

    use super::*;

    #[test]
    fn an_event_has_the_documented_kind_and_fields() {
        let mut id = 0;
        let lines = samples::all().into_iter().map(|event| {
            id += 1;
            let (at, mono_ns) = (12.5, 7);
            let record = EventRecord {
                id,
                at,
                mono_ns,
                event,
            };
            let document = EventDoc::from(&record);
            let text = serde_json::to_string(&document).unwrap();
            assert_eq!(serde_json::from_str::<EventDoc>(&text).unwrap(), document);
            text + "\n"
        });
        golden::check("events.jsonl", &lines.collect::<String>());
    }
}
