//! Fleets: copies of one program, usually behind a socket that `supervise` holds.

use std::{fs, time::Duration};

use nix::sys::signal::Signal;

use super::{
    client::Load,
    servers::recycled_without_loss,
    service::{Ended, Plan, free_port, recycles, send},
    status::{pids, workers},
    turn,
    venv::{NEWEST, OTHERS, python},
};

const SOON: Duration = Duration::from_secs(30);

/// A fleet of two copies behind a socket.
fn fleet(port: u16, options: &[&str], command: &[&str]) -> Plan {
    let address = format!("127.0.0.1:{port}");
    let fixed = ["--copies", "2", "--listen", &address, "--ceiling", "200M"];
    Plan::supervise(&[&fixed, options].concat(), command)
}

/// Recycles all copies this many times under load.
#[track_caller]
fn copies_recycled_without_loss(command: &[&str], rounds: u64) {
    let plan = |port| fleet(port, &[], command);
    recycled_without_loss("fleet", plan, rounds, &[true, false]);
}

#[test]
fn copies_of_uvicorn_are_recycled_without_loss() {
    copies_recycled_without_loss(&[&NEWEST.bin("uvicorn"), "leaky_asgi:app"], 3);
}

#[test]
fn copies_of_hypercorn_are_recycled_without_loss() {
    let hypercorn = OTHERS.bin("hypercorn");
    let bind = ["--workers", "0", "--bind", "fd://{fd}"];
    copies_recycled_without_loss(
        &[&[&*hypercorn], &bind[..], &["leaky_asgi:app"]].concat(),
        3,
    );
}

/// By itself, hypercorn would cut it after three seconds.
#[test]
fn a_long_request_of_a_copy_of_hypercorn_is_finished_at_a_recycle() {
    let _turn = turn::beside();
    let (port, hypercorn) = (free_port(), OTHERS.bin("hypercorn"));
    let bind = ["--workers", "0", "--bind", "fd://{fd}", "leaky_asgi:app"];
    let service = fleet(port, &[], &[&[&*hypercorn], &bind[..]].concat()).start();
    service.ready(2);
    let load = Load {
        timeout: SOON,
        ..Load::on(port)
    };
    let answer = std::thread::scope(|scope| {
        let running = scope.spawn(|| load.once("/sleep?s=10"));
        let answer = service.client(&["recycle", "--all"]);
        assert!(answer.status.success(), "{answer:?}");
        running.join().unwrap()
    });
    assert!(answer.is_ok(), "{answer:?}\n{}", service.log());
}

#[test]
fn copies_of_daphne_are_recycled_without_loss() {
    let daphne = OTHERS.bin("daphne");
    copies_recycled_without_loss(&[&daphne, "--fd", "{fd}", "leaky_asgi:app"], 3);
}

#[test]
fn copies_of_waitress_are_recycled_without_loss() {
    // Each recycle takes seconds: a copy in select serves after a second, and lingers.
    copies_recycled_without_loss(&[&OTHERS.bin("python"), "serves_waitress.py"], 1);
}

#[test]
fn copies_without_a_socket_are_ready_after_a_while_and_are_replaced_first() {
    let _turn = turn::beside();
    let options = ["-n", "2", "--ceiling", "200M"];
    let service = Plan::supervise(&options, &[&*python(), "waits_for_tasks.py"]).start();
    let first = workers(&service.ready(2))[0]["id"].clone();
    let first = first.as_str().expect("an id");
    let answer = service.client(&["recycle", first]);
    assert!(answer.status.success(), "{answer:?}");
    let kinds: Vec<_> = service
        .events()
        .iter()
        .filter_map(|event| event["event"].as_str().map(str::to_owned))
        .filter(|kind| ["raised", "draining", "worker-ended"].contains(&kind.as_str()))
        .collect();
    assert_eq!(kinds, ["raised", "draining", "worker-ended"]);
    service.ready(2);
    assert_eq!(service.stop(SOON).code(), Some(0));
}

#[test]
fn a_copy_that_ignores_its_socket_causes_a_warning() {
    let _turn = turn::beside();
    let port = free_port();
    let service = fleet(port, &[], &[&*python(), "waits_for_tasks.py"]).start();
    service.wait("the warning", SOON, || {
        service.warnings("`{fd}` in its arguments").pop()
    });
}

#[test]
fn as_many_copies_as_cores_and_memory_allow_are_started() {
    let _turn = turn::beside();
    let cores = std::thread::available_parallelism().unwrap().get();
    let (port, uvicorn) = (free_port(), NEWEST.bin("uvicorn"));
    let address = format!("127.0.0.1:{port}");
    for (budget, count, why) in [("8G", cores, "cores"), ("60M", 1, "1 fit into")] {
        let options = ["-n", "auto", "--listen", &address, "--budget", budget];
        let service = Plan::supervise(&options, &[&*uvicorn, "leaky_asgi:app"]).start();
        let chosen = service.wait("the number of copies", SOON, || {
            service.events_of("copies-chosen").pop()
        });
        assert_eq!(chosen["workers"], count, "{chosen:#}");
        let message = chosen["message"].as_str().unwrap();
        assert!(message.contains(why), "{message}");
        service.ready(count);
        assert_eq!(service.stop(SOON).code(), Some(0));
    }
}

#[test]
fn a_hangup_replaces_all_copies() {
    let _turn = turn::loaded();
    let (uvicorn, port) = (NEWEST.bin("uvicorn"), free_port());
    let service = fleet(port, &[], &[&uvicorn, "leaky_asgi:app"]).start();
    let before = pids(&service.ready(2));
    let running = Load {
        rate: Some(50.0),
        lasts: Duration::from_secs(3600),
        ..Load::on(port)
    }
    .start();
    send(service.pid(), Signal::SIGHUP);
    service.wait("two other copies", SOON, || {
        let now = service.status()?;
        (recycles(&now, "reload") == 2 && pids(&now).iter().all(|pid| !before.contains(pid)))
            .then_some(())
    });
    let outcome = running.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}\n{}", service.log());
}

#[test]
fn an_upgrade_keeps_all_copies_and_does_not_change_their_number() {
    let _turn = turn::beside();
    let config = "copies = 2\n[memory]\nceiling = \"200M\"\n";
    let plan = Plan::supervise(&[], &[&*python(), "waits_for_tasks.py"]).config(config);
    let service = plan.start();
    let before = service.ready(2);
    let file = service.config_file();
    fs::write(&file, "[memory]\nceiling = \"200M\"\n").unwrap();
    let refused = service.client(&["upgrade"]);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(
        stderr.contains("copies cannot change from 2 to none"),
        "{stderr}"
    );
    fs::write(&file, config).unwrap();
    let upgraded = service.client(&["upgrade"]);
    assert!(upgraded.status.success(), "{upgraded:?}");
    let after = service.ready(2);
    assert_eq!(pids(&after), pids(&before));
    assert_eq!(after["mode"], "fleet", "{after:#}");
}

/// The error of a command line that is refused before anything is started.
#[track_caller]
fn refused(options: &[&str], command: &[&str]) -> String {
    let Ended { status, stderr, .. } = Plan::supervise(options, command).run(SOON);
    assert_eq!(status.code(), Some(2), "{stderr}");
    stderr
}

#[test]
fn a_server_that_starts_several_workers_itself_is_not_multiplied() {
    let _turn = turn::beside();
    let gunicorn = NEWEST.bin("gunicorn");
    let stderr = refused(&["-n", "4"], &[&gunicorn, "leaky_flask:app"]);
    assert!(
        stderr.contains("gunicorn starts several workers itself"),
        "{stderr}"
    );
    let uvicorn = NEWEST.bin("uvicorn");
    let stderr = refused(&["-n", "4"], &[&uvicorn, "--workers=2", "leaky_asgi:app"]);
    assert!(stderr.contains("leave out one of both"), "{stderr}");
    let stderr = refused(
        &["-n", "4", "--restart", "never"],
        &[&uvicorn, "leaky_asgi:app"],
    );
    assert!(stderr.contains("a job is one run of COMMAND"), "{stderr}");
}
