//! uvicorn's own workers are supervised one by one.

use std::time::Duration;

use super::{
    client::Load,
    service::{Plan, free_port},
    status::workers,
    turn,
    venv::NEWEST,
};

const SOON: Duration = Duration::from_secs(30);

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
