//! One event of each kind, for tests.

use std::time::Duration;

use crate::{
    supervisor::cause::Cause,
    supervisor::event::{
        Effective, End, Event, Left, Limits, ProcessSize, Running, SharedCeiling, StopExtended,
        Suggested, Who,
    },
    units::{Bytes, ReportId, RunId, Timestamp, WorkerId},
};

pub(super) fn end(who: Who, cause: Cause) -> End {
    End {
        who,
        pid: 4242,
        cause,
        memory: Bytes::mib(301),
        peak: Bytes::mib(302),
        limit: Some(Bytes::mib(300)),
        age: Duration::from_secs(42),
        tasks: Some(7),
        drain: Some(Duration::from_millis(300)),
        killed: false,
        at: Timestamp::default(),
        report: None,
        ran: None,
        running: None,
    }
}

/// Events about processes that are not workers, and about workers that are not watched.
fn others() -> Vec<Event> {
    let left = Left {
        worker: WorkerId::FIRST,
        pid: 4242,
        command: "chrome --headless".to_owned(),
        memory: Bytes::mib(80),
    };
    vec![
        Event::ServerFound {
            pid: 4241,
            server: "uvicorn".to_owned(),
        },
        Event::ServerHelper {
            pid: 4242,
            command: "gunicorn: dirty-arbiter".to_owned(),
        },
        Event::StopExtended(StopExtended {
            worker: Some(WorkerId::FIRST),
            time: Duration::from_secs(120),
            status: Some("writing batch 7".to_owned()),
            cut: false,
        }),
        Event::CeilingShared(SharedCeiling {
            worker: WorkerId::FIRST,
            processes: 6,
            memory: Bytes::mib(768),
            ceiling: Bytes::mib(400),
            guessed: true,
            largest: vec![ProcessSize {
                pid: 4243,
                command: "python load.py".to_owned(),
                memory: Bytes::mib(152),
            }],
        }),
        Event::LeftBehind(left.clone()),
        Event::LeftoverEnded(left, Some(Duration::from_secs(5))),
        unwatched(35),
        unwatched(0),
    ]
}

/// One event of each other kind, with all optional fields.
/// An end with all fields.
fn end_of_worker(worker: WorkerId, cause: Cause) -> End {
    End {
        report: Some(ReportId(3)),
        ran: Some("etl.py:7 load, at 292M".to_owned()),
        running: Some(Running {
            request: "/export".to_owned(),
            age: Duration::from_millis(2300),
            in_progress: 3,
        }),
        ..end(Who::Worker(worker), cause)
    }
}

fn every() -> Vec<Event> {
    let (worker, run) = (WorkerId::FIRST, RunId(1));
    let (pid, after, cause) = (4242, Duration::from_millis(1200), Cause::Ceiling);
    let limit = |from: &str| Effective {
        bytes: Some(Bytes::mib(300)),
        from: from.to_owned(),
    };
    vec![
        Event::Limits(Limits {
            available: Bytes::mib(2048),
            ceiling: limit("given"),
            cap: limit("twice the ceiling"),
            budget: limit("90% of 2G"),
        }),
        Event::Started { run, pid },
        Event::Ready { run, after },
        Event::WorkerSeen { worker, pid },
        Event::WorkerReady { worker, after },
        Event::Due {
            worker,
            cause,
            memory: Bytes::mib(301),
            limit: Some(Bytes::mib(286)),
            configured: Some(Bytes::mib(300)),
            dry_run: false,
        },
        Event::Rescued {
            worker,
            freed: Bytes::mib(84),
            memory: Bytes::mib(216),
            times: 1,
        },
        Event::Armed {
            worker,
            memory: Bytes::mib(260),
            baseline: Bytes::mib(200),
        },
        Event::Reported {
            report: ReportId(3),
            worker,
            cause,
            summary: "python: 81M of 90M; app.py:7 remember".to_owned(),
        },
        Event::Pressed {
            memory: Bytes::mib(800),
            budget: Some(Bytes::mib(900)),
        },
        Event::Upgraded {
            version: "0.2.0".to_owned(),
            from: "0.1.0".to_owned(),
        },
        Event::Chosen {
            workers: 2,
            why: "2 cores".to_owned(),
        },
        Event::Raised,
        Event::Lowered,
        Event::Draining { worker, cause },
        Event::Killed { worker },
        Event::Ended(end_of_worker(worker, cause)),
        Event::Ended(end(Who::Server, Cause::Exit(3))),
        Event::Restarting { run, after },
        Event::GaveUp {
            ends: 6,
            window: Duration::from_secs(60),
            last: "status 3".to_owned(),
        },
        Event::Stopping,
        Event::Stopped { status: 0 },
        Event::Warning("the cap is not enforced".to_owned()),
    ]
}

/// One event of each kind.
pub(crate) fn all() -> Vec<Event> {
    let why = "w3".to_owned();
    let suspensions = vec![
        Event::Resumed { why: why.clone() },
        Event::Suspended { why, down: false },
    ];
    let reason = Event::Reason {
        worker: Some(WorkerId::FIRST),
        text: "over its ceiling, but another worker is not ready yet".to_owned(),
    };
    let suggested = Event::Suggested(Suggested {
        ceiling: Some(Bytes::mib(253)),
        cap: Some(Bytes::mib(506)),
        text: "the dry run suggests --ceiling 253M --cap 506M".to_owned(),
    });
    [every(), others(), suspensions, vec![reason, suggested]].concat()
}

fn unwatched(workers: u32) -> Event {
    Event::Unwatched {
        workers,
        limit: 1024,
    }
}
