//! One report of each kind, for the tests of those who hand reports on.

use std::time::Duration;

use crate::{
    supervisor::report::{Cause, Effective, End, Left, Limits, Report, Who},
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
    }
}

/// Reports about processes that are not workers, and about workers that are not watched.
fn beside_workers() -> Vec<Report> {
    let left = Left {
        worker: WorkerId::FIRST,
        pid: 4242,
        command: "chrome --headless".to_owned(),
        memory: Bytes::mib(80),
    };
    vec![
        Report::ServerHelper {
            pid: 4242,
            command: "gunicorn: dirty-arbiter".to_owned(),
        },
        Report::LeftBehind(left.clone()),
        Report::LeftoverEnded(left, Some(Duration::from_secs(5))),
        unwatched(35),
        unwatched(0),
    ]
}

/// One report of each other kind, every optional figure present.
fn every() -> Vec<Report> {
    let (worker, run) = (WorkerId::FIRST, RunId(1));
    let (pid, after, cause) = (4242, Duration::from_millis(1200), Cause::Ceiling);
    let limit = |from: &str| Effective {
        bytes: Some(Bytes::mib(300)),
        from: from.to_owned(),
    };
    vec![
        Report::Limits(Limits {
            available: Bytes::mib(2048),
            ceiling: limit("given"),
            cap: limit("twice the ceiling"),
            budget: limit("90% of 2G"),
        }),
        Report::Started { run, pid },
        Report::Ready { run, after },
        Report::WorkerSeen { worker, pid },
        Report::WorkerReady { worker, after },
        Report::Due {
            worker,
            cause,
            memory: Bytes::mib(301),
            limit: Some(Bytes::mib(286)),
            configured: Some(Bytes::mib(300)),
            dry_run: false,
        },
        Report::Rescued {
            worker,
            freed: Bytes::mib(84),
            memory: Bytes::mib(216),
            times: 1,
        },
        Report::Armed {
            worker,
            memory: Bytes::mib(260),
            baseline: Bytes::mib(200),
        },
        Report::Reported {
            report: ReportId(3),
            worker,
            cause,
            summary: "python: 81M of 90M; app.py:7 remember".to_owned(),
        },
        Report::Pressed {
            memory: Bytes::mib(800),
            budget: Some(Bytes::mib(900)),
        },
        Report::Upgraded {
            version: "0.2.0".to_owned(),
            from: "0.1.0".to_owned(),
        },
        Report::Raised,
        Report::Lowered,
        Report::Draining { worker, cause },
        Report::Killed { worker },
        Report::Ended(End {
            report: Some(ReportId(3)),
            ..end(Who::Worker(worker), cause)
        }),
        Report::Ended(end(Who::Server, Cause::Exit(3))),
        Report::Restarting { run, after },
        Report::GaveUp {
            ends: 6,
            window: Duration::from_secs(60),
            last: "status 3".to_owned(),
        },
        Report::Stopping,
        Report::Stopped { status: 0 },
        Report::Warning("the cap is not held".to_owned()),
    ]
}

/// One report of each kind.
pub(crate) fn all() -> Vec<Report> {
    let why = "w3".to_owned();
    let suspensions = vec![
        Report::Resumed { why: why.clone() },
        Report::Suspended { why, down: false },
    ];
    [every(), beside_workers(), suspensions].concat()
}

fn unwatched(workers: u32) -> Report {
    Report::Unwatched {
        workers,
        limit: 1024,
    }
}
