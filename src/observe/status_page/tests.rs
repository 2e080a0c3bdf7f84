//! Complete pages.

use std::collections::BTreeMap;

use crate::{
    supervisor::{
        cause::Cause,
        event::{Limits, Who},
        input::Agent,
        snapshot::{HelperView, MemoryView, PoolView, RouteView, WorkerView},
    },
    units::{Bytes, ReportId, WorkerId},
};

use super::*;

fn snapshot() -> Snapshot {
    let effective = |mib, from: &str| Effective {
        bytes: Some(Bytes::mib(mib)),
        from: from.to_owned(),
    };
    let worker = |id, pid, state: &str, private, slope_bps| WorkerView {
        id,
        pid,
        slot: 0,
        state: state.to_owned(),
        age: Duration::from_secs(200),
        tasks: None,
        tasks_per_s: None,
        bytes_per_task: None,
        agent: Agent::Loaded,
        traced: false,
        rescues: 0,
        processes: 1,
        status_text: None,
        killed_in: None,
        memory: MemoryView {
            private: Bytes::mib(private),
            rss: Bytes::mib(290),
            peak: Bytes::mib(private),
            slope_bps,
            to_ceiling: slope_bps.map(|_| Duration::from_secs(75)),
            ..MemoryView::default()
        },
    };
    let w1 = WorkerId::FIRST;
    Snapshot {
        name: "shop".to_owned(),
        mode: "server".to_owned(),
        command_pid: Some(40),
        ready: true,
        caps: CapMechanism::CgroupV1,
        enforced: true,
        threshold: true,
        limits: Limits {
            available: Bytes::mib(2048),
            ceiling: effective(300, "given"),
            cap: effective(600, "twice the ceiling"),
            budget: effective(1843, "90% of 2G"),
        },
        workers: vec![
            worker(w1.next(), 42, "ready", 210, Some(1_258_291.0)),
            worker(w1.next().next(), 4343, "starting", 12, None),
        ],
        recycles: BTreeMap::from([("age".to_owned(), 1), ("ceiling".to_owned(), 2)]),
        ends: vec![End {
            who: Who::Worker(w1),
            pid: 41,
            cause: Cause::Ceiling,
            memory: Bytes::mib(301),
            peak: Bytes::mib(302),
            limit: Some(Bytes::mib(300)),
            age: Duration::from_secs(42),
            tasks: None,
            drain: Some(Duration::from_millis(300)),
            killed: false,
            at: Timestamp::from_nanos(10_000_000_000),
            report: None,
            ran: None,
            running: None,
        }],
        ..Snapshot::default()
    }
}

fn page(snapshot: &Snapshot, width: usize) -> String {
    let about = About {
        pid: 38,
        version: "0.1.0".to_owned(),
        up: Duration::from_secs(7380),
        now: Timestamp::from_nanos(40_000_000_000),
    };
    table(snapshot, &about, width)
}

#[test]
fn a_healthy_service_is_shown_on_one_page() {
    let expected = "\
shop       ready, server, up 2h 3m, command pid 40; supervise 0.1.0 pid 38

ceiling    300M (given), of private memory
cap        600M (twice the ceiling)
budget     1.80G (90% of 2G); 2G available
mechanism  cgroup v1; the kernel reports memory near the ceiling

ID   PID  STATE        AGE  MEMORY  PEAK  OF CEILING     SLOPE  TO CEILING  PROCS
w2    42  ready     3m 20s    210M  210M         70%  +1.20M/s      1m 15s      1
w3  4343  starting  3m 20s     12M   12M          4%         -           -      1

recycled   3 (age 1, ceiling 2)
unplanned  0
restarts   0

  ENDED  WORKER  PID  CAUSE    MEMORY  PEAK  LIMIT  AGE  DRAIN
30s ago  w1       41  ceiling    301M  302M   300M  42s   0.3s
";
    assert_eq!(page(&snapshot(), 100), expected);
}

#[test]
fn what_is_waited_for_and_what_programs_say_is_shown_with_its_time() {
    let mut snapshot = snapshot();
    let worker = &mut snapshot.workers[0];
    worker.state = "draining".to_owned();
    worker.killed_in = Some(Duration::from_secs(120));
    worker.status_text = Some("writing batch 7".to_owned());
    let shown = page(&snapshot, 100);
    assert!(
        shown.contains("waits for  w2, killed in 2m 0s\n"),
        "{shown}"
    );
    assert!(
        shown.contains("status     w2: writing batch 7\n"),
        "{shown}"
    );
    snapshot.stopping = true;
    snapshot.killed_in = Some(Duration::from_secs(30));
    let shown = page(&snapshot, 100);
    let both = "waits for  the command, killed in 30s; w2, killed in 2m 0s\n";
    assert!(shown.contains(both), "{shown}");
}

#[test]
fn helpers_of_a_server_are_shown_with_what_limits_them() {
    let mut snapshot = snapshot();
    let helper = |pid, name: &str, memory| HelperView {
        pid,
        name: name.to_owned(),
        command: "python tracker.py".to_owned(),
        memory: Bytes::mib(memory),
    };
    snapshot.helpers = vec![helper(12, "dirty worker", 152), helper(13, "helper", 9)];
    let shown = page(&snapshot, 100);
    let line = "helpers    dirty worker pid 12: 152M; helper pid 13 (`python tracker.py`): 9M";
    assert!(shown.contains(&format!("{line} (no limit")), "{shown}");
    snapshot.helpers_limited = true;
    assert!(page(&snapshot, 100).contains("(only the"), "{shown}");
}

#[test]
fn tasks_missing_agents_and_reports_are_shown_where_they_are_known() {
    let mut snapshot = snapshot();
    snapshot.workers[0].tasks = Some(12_345);
    snapshot.workers[0].tasks_per_s = Some(81.4);
    snapshot.workers[0].bytes_per_task = Some(1230.0);
    snapshot.workers[0].traced = true;
    snapshot.workers[1].agent = Agent::Absent("its python runs with -I".to_owned());
    snapshot.ends[0].report = Some(ReportId(3));
    snapshot.rescues = 2;
    snapshot.requests = Some(54_321);
    let page = page(&snapshot, 120);
    let (_, shown) = page.split_once("near the ceiling\n\n").unwrap();
    let expected = "\
ID   PID  STATE             AGE  MEMORY  PEAK  OF CEILING     SLOPE  TO CEILING  PROCS  \
TASKS  /S  MEM/TASK
w2    42  ready, traced  3m 20s    210M  210M         70%  +1.20M/s      1m 15s      1  \
12345  81    +1.20K
w3  4343  starting       3m 20s     12M   12M          4%         -           -      \
1      -   -         -
no agent   w3: its python runs with -I

recycled   3 (age 1, ceiling 2); rescued 2
unplanned  0
restarts   0
requests   54321

  ENDED  WORKER  PID  CAUSE    MEMORY  PEAK  LIMIT  AGE  DRAIN  REPORT
30s ago  w1       41  ceiling    301M  302M   300M  42s   0.3s  r3
";
    assert_eq!(shown, expected);
}

#[test]
fn routes_are_shown_if_their_growth_is_worth_it() {
    let route = |route: &str, requests, per_request, share, certain| RouteView {
        route: route.to_owned(),
        requests,
        growth: Bytes(requests * per_request),
        per_request: Bytes(per_request),
        share,
        certain,
    };
    let mut snapshot = snapshot();
    let certain = route("/users/<id>", 6011, 51_200, 0.7, true);
    snapshot.routes = vec![
        certain.clone(),
        route("/a\u{1b}[2J", 100_000, 300, 0.2, false),
        route("/noise", 100_000, 200, 0.19, false),
        route("/small", 100, 300, 0.06, true),
        route("/part", 100_000, 20, 0.01, true),
    ];
    let shown = page(&snapshot, 100);
    let expected = "\
restarts   0

ROUTE        REQUESTS  GROWTH  PER REQUEST  SHARE  CERTAIN
/users/<id>      6011   +294M         +50K    70%  yes
/a\\u{1b}[2J    100000  +28.6M         +300    20%  no

  ENDED";
    assert!(shown.contains(expected), "{shown}");
    snapshot.routes = vec![certain; 7];
    assert_eq!(page(&snapshot, 100).matches("/users").count(), 5);
    snapshot.routes.clear();
    assert!(!page(&snapshot, 100).contains("ROUTE"));
}

#[test]
fn a_pool_is_shown_with_its_function_and_its_tasks() {
    let mut snapshot = snapshot();
    let function = Some("etl:convert".to_owned());
    snapshot.pool = Some(PoolView {
        function,
        done: 1200,
        failed: 3,
        running: 2,
        waiting: 64,
        abandoned: 0,
    });
    snapshot.mode = "pool".to_owned();
    snapshot.command_pid = None;
    snapshot.workers[0].agent =
        Agent::Absent("workers of a pool load the agent only for a report".to_owned());
    snapshot.requests = Some(1203);
    snapshot.ends.clear();
    let page = page(&snapshot, 120);
    let head = "shop       ready, pool, up 2h 3m, calls etl:convert; supervise 0.1.0 pid 38\n";
    assert!(page.starts_with(head), "{page}");
    let expected = "\nrecycled   3 (age 1, ceiling 2)\nunplanned  0\n\
                    tasks      1200 done, 3 failed, 2 running, 64 waiting\n";
    assert!(page.ends_with(expected), "{page}");
    assert!(!page.contains("no agent"), "{page}");
}

#[test]
fn a_reason_for_several_workers_is_given_once_with_some_names() {
    let mut workers = vec![snapshot().workers[0].clone(); 8];
    for worker in &mut workers {
        worker.agent = Agent::Absent("python 2.7".to_owned());
    }
    let names = ["w2"; 6].join(", ") + " and 2 more";
    assert_eq!(missing_agents(&workers), [("python 2.7", names)]);
}

#[test]
fn a_cap_that_is_not_enforced_is_shown_with_its_reason() {
    let snapshot = Snapshot {
        ready: false,
        command_pid: None,
        caps: CapMechanism::Rlimit,
        enforced: false,
        threshold: false,
        why_not: Some("no memory controller is delegated; set Delegate=yes".to_owned()),
        measure: "rss".to_owned(),
        limits: Limits {
            budget: Effective::default(),
            ..snapshot().limits
        },
        workers: snapshot().workers.split_off(1),
        ends: Vec::new(),
        ..snapshot()
    };
    let expected = "\
shop       not ready, server, up 2h 3m, no command;
           supervise 0.1.0 pid 38

ceiling    300M (given), of rss memory
cap        600M (twice the ceiling)
budget     none; 2G available
mechanism  RLIMIT_DATA, for each process; only samples
           show memory near the ceiling
WARNING    the cap is not enforced for whole workers: no
           memory controller is delegated; set
           Delegate=yes

ID   PID  STATE        AGE  MEMORY  PEAK  OF CEILING  S…
w3  4343  starting  3m 20s    290M   12M         97%   …

recycled   3 (age 1, ceiling 2)
unplanned  0
restarts   0
";
    assert_eq!(page(&snapshot, 56), expected);
}
