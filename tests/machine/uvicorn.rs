//! uvicorn's own workers are supervised one by one.

use std::{fs, time::Duration};

use super::{
    client::Load,
    proc,
    service::{Plan, Service, free_port},
    status::workers,
    turn,
    venv::NEWEST,
};

const SOON: Duration = Duration::from_secs(30);

/// The memory limit of the group of a process, as the kernel writes it. `None`: there is no group.
fn limit_of(service: &Service, pid: i64) -> Option<String> {
    let pid = pid.to_string();
    let supervisor = u32::try_from(service.pid()).expect("a pid");
    let services = proc::groups_of(supervisor).into_iter();
    let mut groups = services
        .filter_map(|group| fs::read_dir(group).ok())
        .flatten()
        .flatten();
    groups.find_map(|group| {
        let read = |name| fs::read_to_string(group.path().join(name));
        let pids = read("cgroup.procs").ok()?;
        let limit = read("memory.max").or_else(|_| read("memory.limit_in_bytes"));
        limit.ok().filter(|_| pids.lines().any(|one| one == pid))
    })
}

#[test]
fn a_recycled_uvicorn_worker_stops_after_its_replacement_is_ready() {
    let _turn = turn::loaded();
    let port = free_port();
    let number = port.to_string();
    let uvicorn = NEWEST.bin("uvicorn");
    let command = [
        &*uvicorn,
        "--workers",
        "2",
        "--port",
        &number,
        "leaky_asgi:app",
    ];
    let options = ["--ceiling", "200M", "--surge-idle", "1s"];
    let service = Plan::supervise(&options, &command).start();
    // multiprocessing's resource tracker is not a worker.
    service.wait("the helper", SOON, || {
        (!service.events_of("server-helper").is_empty()).then_some(())
    });
    let before = service.ready(2);
    let server = before["command_pid"].as_i64();
    // Its group had a cap as long as it counted as one worker.
    match limit_of(&service, server.expect("a pid")) {
        // Version 1 shows the highest number of whole pages.
        Some(limit) => assert!(
            limit.trim().parse().is_ok_and(|limit: u64| limit > 1 << 62) || limit.trim() == "max",
            "{limit}"
        ),
        None => {
            println!("NOT RUN: whether the server has a cap, because there is no memory cgroup")
        }
    }
    let first = workers(&before)[0]["id"].as_str().unwrap().to_owned();
    let load = Load {
        rate: Some(50.0),
        lasts: Duration::from_secs(10),
        ..Load::on(port)
    };
    let outcome = std::thread::scope(|scope| {
        let running = scope.spawn(|| load.run());
        let answer = service.client(&["recycle", &first]);
        assert!(answer.status.success(), "{answer:?}");
        running.join().unwrap()
    });
    assert_eq!(outcome.failed(), 0, "{outcome}");
    let after = service.ready(2);
    assert_eq!(after["command_pid"].as_i64(), server);
    let kinds: Vec<_> = service
        .events()
        .iter()
        .filter(|event| event["worker"].is_null() || event["worker"] == *first)
        .map(|event| event["event"].as_str().unwrap().to_owned())
        .filter(|kind| ["raised", "draining", "worker-ended"].contains(&kind.as_str()))
        .collect();
    assert_eq!(kinds, ["raised", "draining", "worker-ended"]);
    let end = &service.events_of("worker-ended")[0];
    assert_eq!(
        (&end["worker"], &end["cause"]),
        (&first.into(), &"request".into())
    );
}
