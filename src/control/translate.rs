//! Translates a snapshot into the status document, and back.

use std::time::Duration;

use crate::{
    supervisor::{
        event::{Effective, End, Limits, Who},
        input::{Agent, CapMechanism},
        snapshot::{
            HelperView, LeftoverView, MemoryView, PoolView, RouteView, Snapshot, SuspendedView,
            WorkerView,
        },
    },
    units::{Bytes, Timestamp},
};

use super::documents::{
    AgentDoc, CapsDoc, EndDoc, HelperDoc, LeftoverDoc, LimitDoc, LimitsDoc, Mechanism, MemoryDoc,
    PoolDoc, RecyclingDoc, RouteDoc, Status, TotalsDoc, UpgradesDoc, WorkerDoc, millis,
};

/// Information about the supervisor that a snapshot does not have.
#[derive(Clone, Debug)]
pub struct Context {
    /// The supervisor's pid.
    pub pid: u32,
    /// The supervisor's version.
    pub version: String,
    /// Its start, in Unix seconds.
    pub started: f64,
    /// Results of upgrades since then.
    pub upgrades: UpgradesDoc,
    /// Unix seconds are the seconds of a [`Timestamp`] plus this.
    pub offset: f64,
}

/// A status document with an invalid value.
#[derive(Debug, thiserror::Error)]
#[error("read the status: {0}")]
pub struct InvalidStatus(pub(super) String);

impl Status {
    /// The document of a snapshot.
    pub fn of(snapshot: &Snapshot, context: &Context) -> Self {
        Self {
            name: snapshot.name.clone(),
            pid: context.pid,
            version: context.version.clone(),
            started: context.started,
            upgrades: context.upgrades.clone(),
            mode: snapshot.mode.clone(),
            command_pid: snapshot.command_pid,
            ready: snapshot.ready,
            stopping: snapshot.stopping,
            killed_in_s: snapshot.killed_in.map(seconds),
            status_text: snapshot.status_text.clone(),
            problem: snapshot.problem.clone(),
            caps: CapsDoc {
                mechanism: snapshot.caps.into(),
                enforced: snapshot.enforced,
                why_not: snapshot.why_not.clone(),
                wire: snapshot.threshold,
            },
            limits: LimitsDoc {
                measure: snapshot.measure.clone(),
                available: snapshot.limits.available.get(),
                ceiling: (&snapshot.limits.ceiling).into(),
                cap: (&snapshot.limits.cap).into(),
                budget: (&snapshot.limits.budget).into(),
            },
            workers: snapshot.workers.iter().map(WorkerDoc::from).collect(),
            recycling: snapshot.suspended.as_ref().map_or_else(
                RecyclingDoc::default,
                |suspended| RecyclingDoc {
                    suspended: true,
                    why: Some(suspended.why.clone()),
                    suspended_s: Some(seconds(suspended.lasts)),
                    failed_in_a_row: suspended.failures,
                },
            ),
            helpers: (snapshot.helpers.iter().map(HelperDoc::from)).collect(),
            helpers_limited: snapshot.helpers_limited,
            leftovers: (snapshot.leftovers.iter().map(LeftoverDoc::from)).collect(),
            totals: TotalsDoc {
                recycles: snapshot.recycles.clone(),
                ends: snapshot.unplanned.clone(),
                restarts: snapshot.restarts,
                rescues: snapshot.rescues,
                failed_starts: snapshot.failed_starts,
                leftovers_ended: snapshot.leftovers_ended,
                tasks: snapshot.pool.as_ref().and(snapshot.requests),
                requests: snapshot.requests,
            },
            routes: snapshot.routes.iter().map(RouteDoc::from).collect(),
            pool: snapshot.pool.clone().map(PoolDoc::from),
            ends: (snapshot.ends.iter())
                .map(|end| EndDoc::of(end, context.offset))
                .collect(),
        }
    }
}

impl TryFrom<Status> for Snapshot {
    type Error = InvalidStatus;

    /// The snapshot of a document; its timestamps count from the Unix epoch.
    fn try_from(status: Status) -> Result<Self, InvalidStatus> {
        Ok(Self {
            name: status.name,
            mode: status.mode,
            command_pid: status.command_pid,
            ready: status.ready,
            stopping: status.stopping,
            killed_in: status.killed_in_s.map(duration),
            status_text: status.status_text,
            problem: status.problem,
            caps: status.caps.mechanism.into(),
            enforced: status.caps.enforced,
            why_not: status.caps.why_not,
            threshold: status.caps.wire,
            measure: status.limits.measure,
            limits: Limits {
                available: Bytes(status.limits.available),
                ceiling: status.limits.ceiling.into(),
                cap: status.limits.cap.into(),
                budget: status.limits.budget.into(),
            },
            workers: (status.workers.into_iter().map(WorkerView::try_from))
                .collect::<Result<_, _>>()?,
            recycles: status.totals.recycles,
            unplanned: status.totals.ends,
            restarts: status.totals.restarts,
            ends: (status.ends.iter().map(End::try_from)).collect::<Result<_, _>>()?,
            requests: status.totals.requests,
            rescues: status.totals.rescues,
            failed_starts: status.totals.failed_starts,
            suspended: status.recycling.suspended.then(|| SuspendedView {
                why: status.recycling.why.unwrap_or_default(),
                lasts: duration(status.recycling.suspended_s.unwrap_or_default()),
                failures: status.recycling.failed_in_a_row,
            }),
            helpers: status.helpers.into_iter().map(HelperView::from).collect(),
            helpers_limited: status.helpers_limited,
            leftovers: (status.leftovers.into_iter().map(LeftoverView::try_from))
                .collect::<Result<_, _>>()?,
            leftovers_ended: status.totals.leftovers_ended,
            routes: status.routes.into_iter().map(RouteView::from).collect(),
            pool: status.pool.map(PoolView::from),
        })
    }
}

impl From<CapMechanism> for Mechanism {
    fn from(caps: CapMechanism) -> Self {
        match caps {
            CapMechanism::CgroupV2 => Self::CgroupV2,
            CapMechanism::CgroupV1 => Self::CgroupV1,
            CapMechanism::Rlimit => Self::Rlimit,
        }
    }
}

impl From<Mechanism> for CapMechanism {
    fn from(mechanism: Mechanism) -> Self {
        match mechanism {
            Mechanism::CgroupV2 => Self::CgroupV2,
            Mechanism::CgroupV1 => Self::CgroupV1,
            Mechanism::Rlimit => Self::Rlimit,
        }
    }
}

impl From<&Effective> for LimitDoc {
    fn from(limit: &Effective) -> Self {
        Self {
            bytes: limit.bytes.map(Bytes::get),
            from: limit.from.clone(),
        }
    }
}

impl From<LimitDoc> for Effective {
    fn from(limit: LimitDoc) -> Self {
        Self {
            bytes: limit.bytes.map(Bytes),
            from: limit.from,
        }
    }
}

impl From<PoolView> for PoolDoc {
    fn from(pool: PoolView) -> Self {
        Self {
            function: pool.function,
            done: pool.done,
            failed: pool.failed,
            running: pool.running,
            waiting: pool.waiting,
            abandoned: pool.abandoned,
        }
    }
}

impl From<PoolDoc> for PoolView {
    fn from(pool: PoolDoc) -> Self {
        Self {
            function: pool.function,
            done: pool.done,
            failed: pool.failed,
            running: pool.running,
            waiting: pool.waiting,
            abandoned: pool.abandoned,
        }
    }
}

impl From<&WorkerView> for WorkerDoc {
    fn from(worker: &WorkerView) -> Self {
        let memory = &worker.memory;
        let (agent, agent_why_not) = match &worker.agent {
            Agent::Unknown => (AgentDoc::Unknown, None),
            Agent::Loaded => (AgentDoc::Loaded, None),
            Agent::Absent(why) => (AgentDoc::Absent, Some(why.clone())),
        };
        Self {
            id: worker.id.to_string(),
            pid: worker.pid,
            slot: worker.slot,
            state: worker.state.clone(),
            age_s: seconds(worker.age),
            tasks: worker.tasks,
            tasks_per_s: worker.tasks_per_s.map(millis),
            bytes_per_task: worker.bytes_per_task.map(f64::round),
            agent,
            agent_why_not,
            traced: worker.traced,
            rescues: worker.rescues,
            processes: worker.processes,
            status_text: worker.status_text.clone(),
            killed_in_s: worker.killed_in.map(seconds),
            memory: MemoryDoc {
                private: memory.private.get(),
                rss: memory.rss.get(),
                pss: memory.pss.map(Bytes::get),
                cgroup: memory.cgroup.map(Bytes::get),
                peak: memory.peak.get(),
                baseline: memory.baseline.map(Bytes::get),
                slope_bps: memory.slope_bps.map(f64::round),
                to_ceiling_s: memory.to_ceiling.map(seconds),
            },
        }
    }
}

impl TryFrom<WorkerDoc> for WorkerView {
    type Error = InvalidStatus;

    fn try_from(worker: WorkerDoc) -> Result<Self, InvalidStatus> {
        let memory = worker.memory;
        Ok(Self {
            id: worker.id.parse().map_err(InvalidStatus)?,
            pid: worker.pid,
            slot: worker.slot,
            state: worker.state,
            age: duration(worker.age_s),
            tasks: worker.tasks,
            tasks_per_s: worker.tasks_per_s,
            bytes_per_task: worker.bytes_per_task,
            agent: match worker.agent {
                AgentDoc::Unknown => Agent::Unknown,
                AgentDoc::Loaded => Agent::Loaded,
                AgentDoc::Absent => Agent::Absent(worker.agent_why_not.unwrap_or_default()),
            },
            traced: worker.traced,
            rescues: worker.rescues,
            processes: worker.processes,
            status_text: worker.status_text,
            killed_in: worker.killed_in_s.map(duration),
            memory: MemoryView {
                private: Bytes(memory.private),
                rss: Bytes(memory.rss),
                pss: memory.pss.map(Bytes),
                cgroup: memory.cgroup.map(Bytes),
                peak: Bytes(memory.peak),
                baseline: memory.baseline.map(Bytes),
                slope_bps: memory.slope_bps,
                to_ceiling: memory.to_ceiling_s.map(duration),
            },
        })
    }
}

impl EndDoc {
    fn of(end: &End, offset: f64) -> Self {
        Self {
            worker: end.who.to_string(),
            pid: end.pid,
            cause: end.cause.to_string(),
            memory: end.memory.get(),
            peak: end.peak.get(),
            limit: end.limit.map(Bytes::get),
            age_s: seconds(end.age),
            tasks: end.tasks,
            drain_s: end.drain.map(seconds),
            killed: end.killed,
            at: millis(end.at.since(Timestamp::default()).as_secs_f64() + offset),
            report: end.report.map(|report| report.to_string()),
        }
    }
}

impl TryFrom<&EndDoc> for End {
    type Error = InvalidStatus;

    fn try_from(end: &EndDoc) -> Result<Self, InvalidStatus> {
        Ok(Self {
            who: match end.worker.as_str() {
                "server" => Who::Server,
                worker => Who::Worker(worker.parse().map_err(InvalidStatus)?),
            },
            pid: end.pid,
            cause: end.cause.parse().map_err(InvalidStatus)?,
            memory: Bytes(end.memory),
            peak: Bytes(end.peak),
            limit: end.limit.map(Bytes),
            age: duration(end.age_s),
            tasks: end.tasks,
            drain: end.drain_s.map(duration),
            killed: end.killed,
            at: Timestamp::default().later(duration(end.at)),
            report: end
                .report
                .as_deref()
                .map(str::parse)
                .transpose()
                .map_err(InvalidStatus)?,
            ran: None,
            running: None,
        })
    }
}

pub(super) fn seconds(time: Duration) -> f64 {
    millis(time.as_secs_f64())
}

/// Zero if the value is not a valid duration.
pub(super) fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::{
        control::{growth, translate_processes},
        supervisor::cause::Cause,
        units::{ReportId, WorkerId, golden},
    };

    use super::*;

    fn leftover() -> LeftoverView {
        LeftoverView {
            worker: WorkerId::FIRST,
            pid: 43,
            command: "chrome".to_owned(),
            memory: Bytes(9),
            processes: 3,
            idle: Duration::from_secs(2),
        }
    }

    fn worker() -> WorkerView {
        WorkerView {
            agent: Agent::Absent("python 2.7".to_owned()),
            traced: true,
            rescues: 1,
            status_text: Some("writing batch 7".to_owned()),
            killed_in: Some(Duration::from_secs(5)),
            memory: MemoryView {
                private: Bytes(7),
                slope_bps: Some(3.0),
                to_ceiling: Some(Duration::from_secs(9)),
                ..MemoryView::default()
            },
            ..WorkerView::for_test()
        }
    }

    fn tasks() -> PoolView {
        PoolView {
            function: Some("etl:convert".to_owned()),
            done: 340,
            failed: 5,
            running: 2,
            waiting: 8,
            abandoned: 1,
        }
    }

    fn snapshot() -> Snapshot {
        let effective = |mib, from: &str| Effective {
            bytes: Some(Bytes::mib(mib)),
            from: from.to_owned(),
        };
        Snapshot {
            name: "shop".to_owned(),
            mode: "server".to_owned(),
            command_pid: Some(40),
            ready: true,
            killed_in: Some(Duration::from_secs(6)),
            status_text: Some("arbiter booted".to_owned()),
            caps: CapMechanism::CgroupV1,
            enforced: true,
            threshold: true,
            measure: "private".to_owned(),
            limits: Limits {
                available: Bytes::mib(2048),
                ceiling: effective(300, "given"),
                cap: effective(600, "twice the ceiling"),
                budget: Effective::default(),
            },
            workers: vec![worker()],
            recycles: BTreeMap::from([("ceiling".to_owned(), 2)]),
            ends: vec![End {
                who: Who::Server,
                pid: 39,
                cause: Cause::Exit(3),
                memory: Bytes(1),
                peak: Bytes(2),
                limit: None,
                age: Duration::from_secs(4),
                tasks: None,
                drain: Some(Duration::from_millis(300)),
                killed: false,
                at: Timestamp::from_nanos(5_000_000_000),
                report: Some(ReportId(3)),
                ran: None,
                running: None,
            }],
            requests: Some(345),
            rescues: 2,
            suspended: Some(SuspendedView {
                why: "w3 exited".to_owned(),
                lasts: Duration::from_secs(7),
                failures: 2,
            }),
            failed_starts: 4,
            helpers: vec![translate_processes::sample()],
            helpers_limited: true,
            leftovers: vec![leftover()],
            leftovers_ended: 4,
            routes: vec![growth::sample()],
            pool: Some(tasks()),
            ..Snapshot::default()
        }
    }

    fn context(offset: f64) -> Context {
        Context {
            pid: 38,
            version: "0.1.0".to_owned(),
            started: 1000.0,
            upgrades: UpgradesDoc::default(),
            offset,
        }
    }

    #[test]
    fn a_status_has_the_documented_fields() {
        let status = Status::of(&snapshot(), &context(1000.0));
        let text = serde_json::to_string_pretty(&status).unwrap();
        golden::check("status.json", &(text + "\n"));
    }

    #[test]
    fn a_status_document_is_parsed_to_its_snapshot() {
        let text = serde_json::to_string(&Status::of(&snapshot(), &context(0.0))).unwrap();
        let back: Status = serde_json::from_str(&text).unwrap();
        assert_eq!(Snapshot::try_from(back).unwrap(), snapshot());
    }
}
