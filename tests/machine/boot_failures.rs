//! While the application cannot start, the serving workers continue, and no request is lost.

use std::{fs, path::PathBuf, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    client::Load,
    service::{Plan, Service, free_port, recycles, send},
    status::{pids, workers},
    turn,
    venv::{G20, G23, Gunicorn, NEWEST, OTHERS, UVICORN, Venv, python},
};

const SOON: Duration = Duration::from_secs(60);

/// The database of the application. It is away while the file exists.
struct Database {
    _dir: TempDir,
    away: PathBuf,
}

impl Database {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let away = dir.path().join("away");
        Self { _dir: dir, away }
    }

    fn goes_away(&self) {
        fs::write(&self.away, "").unwrap();
    }

    fn comes_back(&self) {
        fs::remove_file(&self.away).unwrap();
    }

    fn plan(&self, options: &[&str], command: &[impl ToString]) -> Plan {
        Plan::supervise(options, command)
            .env("AWAY", self.away.display())
            .env("LEAK_KB", 512)
    }
}

fn gunicorn(venv: Venv, port: u16, class: &'static str) -> Vec<String> {
    let app = if class == UVICORN {
        "needs_database:asgi_app"
    } else {
        "needs_database:app"
    };
    venv.gunicorn(
        port,
        Gunicorn {
            workers: 2,
            class,
            app,
        },
    )
}

fn load(port: u16, path: &str) -> Load {
    Load {
        path: path.to_owned(),
        rate: Some(60.0),
        keep_alive: false,
        lasts: Duration::from_secs(90),
        ..Load::on(port)
    }
}

/// Waits until `count` starts have failed and recycling is suspended.
#[track_caller]
fn failed_starts(service: &Service, count: u64) -> Value {
    service.wait("failed starts", SOON, || {
        let status = service.status()?;
        let failed = status["totals"]["failed_starts"].as_u64()?;
        (failed >= count && status["recycling"]["suspended"] == true).then_some(status)
    })
}

/// Asserts that workers over their ceiling stay while no other worker can start, and are recycled
/// once one can.
fn assert_recycles_wait(venv: Venv, class: &'static str) {
    let port = free_port();
    assert_recycles_of_wait((port, &gunicorn(venv, port, class)), (&[], 1), 2);
}

/// The same for any command, whose workers exit with this status while they cannot start, and of
/// whose two workers `stay` serve meanwhile.
fn assert_recycles_of_wait(
    (port, command): (u16, &[String]),
    (options, exits_with): (&[&str], i32),
    stay: usize,
) {
    let _turn = turn::beside();
    let database = Database::new();
    let fixed = ["--ceiling", "90M", "--cap", "600M", "--min-age", "1s"];
    let service = database.plan(&[&fixed, options].concat(), command).start();
    let before = service.ready(2);
    database.goes_away();
    let others = load(port, "/").start();
    let status = failed_starts(&service, 2);
    let why = status["recycling"]["why"].as_str().unwrap();
    let expected = format!("exited with status {exits_with} before it was ready");
    assert!(why.ends_with(&expected), "{why}");
    let (_, metrics) = service.ask("/metrics");
    assert!(
        metrics.contains("supervise_recycling_suspended 1"),
        "{metrics}"
    );
    let page = String::from_utf8(service.client(&["status"]).stdout).unwrap();
    assert!(page.contains("recycling is suspended"), "{page}");
    let serve = |pid: &i32| pids(&status).contains(pid);
    let serving = pids(&before).iter().filter(|pid| serve(pid)).count();
    assert_eq!(serving, stay, "{status:#}");
    let recycled = recycles(&status, "ceiling");
    assert_eq!(recycled, 2 - stay as u64, "{status:#}");
    database.comes_back();
    let after = service.wait("a recycle by the ceiling", SOON, || {
        service
            .status()
            .filter(|status| recycles(status, "ceiling") > recycled)
    });
    let outcome = others.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    assert_eq!(after["recycling"]["suspended"], false, "{after:#}");
    assert_eq!(before["command_pid"], after["command_pid"], "{after:#}");
    assert_eq!(service.events_of("recycling-suspended").len(), 1);
    assert_eq!(service.events_of("recycling-resumed").len(), 1);
    // The server's own log shows the failure, as without `supervise`.
    assert!(service.log().contains("the database is away"));
    assert_eq!(service.stop(SOON).code(), Some(0));
}

#[test]
fn sync_workers_are_not_recycled_while_the_application_cannot_start() {
    assert_recycles_wait(NEWEST, "sync");
}

#[test]
fn gthread_workers_are_not_recycled_while_the_application_cannot_start() {
    assert_recycles_wait(G23, "gthread");
}

#[test]
fn uvicorn_workers_are_not_recycled_while_the_application_cannot_start() {
    assert_recycles_wait(NEWEST, UVICORN);
}

#[test]
fn workers_of_an_old_gunicorn_are_not_recycled_while_the_application_cannot_start() {
    assert_recycles_wait(G20, "sync");
}

#[test]
fn the_workers_of_uvicorn_itself_are_not_recycled_while_the_application_cannot_start() {
    let port = free_port();
    let (uvicorn, number) = (NEWEST.bin("uvicorn"), port.to_string());
    // uvicorn stops all workers if one exits with status 3.
    for (app, exits_with) in [
        ("needs_database:asgi_app", 1),
        ("needs_database_later:app", 3),
    ] {
        let command = [&*uvicorn, "--workers", "2", "--port", &number, app];
        let command = command.map(str::to_owned);
        assert_recycles_of_wait((port, &command), (&[], exits_with), 2);
    }
}

#[test]
fn copies_are_not_recycled_while_the_application_cannot_start() {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let options = ["--copies", "2", "--listen", &address];
    let command = [NEWEST.bin("uvicorn"), "needs_database:asgi_app".to_owned()];
    assert_recycles_of_wait((port, &command), (&options, 1), 2);
}

/// The database is away for so long that the pauses between two starts get long. `copies`: a fleet
/// of two, or a single program.
#[track_caller]
fn assert_a_long_outage_loses_nothing(copies: &[&str], count: usize) {
    let _turn = turn::loaded();
    let (database, port) = (Database::new(), free_port());
    let address = format!("127.0.0.1:{port}");
    let fixed = ["--listen", &address, "--ceiling", "90M", "--cap", "1G"];
    let options = [
        &fixed[..],
        &["--min-age", "1s", "--surge-idle", "1s"],
        copies,
    ]
    .concat();
    let command = [NEWEST.bin("uvicorn"), "needs_database:asgi_app".to_owned()];
    let service = database.plan(&options, &command).start();
    if count == 1 {
        service.wait("the program to be seen to accept", SOON, || {
            service.events_of("server-found").pop()
        });
    }
    let before = service.ready(count);
    database.goes_away();
    let leaks = load(port, "/").start();
    // After 0.25, 0.5, 1, 2, 4 and 8 s, and the time of each start.
    failed_starts(&service, 6);
    let outcome = leaks.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    let others = load(port, "/pid").start();
    let status = service.status().unwrap();
    assert_eq!(recycles(&status, "ceiling"), 0, "{status:#}");
    database.comes_back();
    service.wait("all old copies to be replaced", SOON, || {
        let now = pids(&service.status()?);
        let replaced = pids(&before).iter().all(|pid| !now.contains(pid));
        (replaced && now.len() == count).then_some(())
    });
    let outcome = others.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    service.ready(count);
    assert_eq!(service.events_of("recycling-suspended").len(), 1);
    assert_eq!(service.events_of("recycling-resumed").len(), 1);
    assert_eq!(service.stop(SOON).code(), Some(0));
}

#[test]
fn a_fleet_loses_nothing_and_gets_no_copy_more_while_the_application_cannot_start_for_long() {
    assert_a_long_outage_loses_nothing(&["-n", "2"], 2);
}

#[test]
fn a_single_program_at_a_held_socket_serves_on_while_it_could_not_start() {
    assert_a_long_outage_loses_nothing(&[], 1);
}

/// The same for two workers of another server, of which the last one stays: the first recycle finds
/// out that the application cannot start. `line`: its command line, with `{address}` and `{port}`.
#[track_caller]
fn assert_the_last_one_stays(line: &str) {
    let port = free_port();
    let line = line
        .replace("{address}", &format!("127.0.0.1:{port}"))
        .replace("{port}", &port.to_string());
    let mut words: Vec<_> = line.split(' ').map(str::to_owned).collect();
    words[0] = OTHERS.bin(&words[0]);
    assert_recycles_of_wait((port, &words), (&[], 1), 1);
}

#[test]
fn the_last_worker_of_hypercorn_is_not_recycled_while_the_application_cannot_start() {
    // It stops all workers if one exits with another status than 0.
    assert_the_last_one_stays("hypercorn -w 2 -b {address} needs_database:asgi_app");
}

#[test]
fn the_last_worker_of_granian_is_not_recycled_while_the_application_cannot_start() {
    // It stops all workers if one exits.
    let line = "granian --interface asgi --workers 2 --port {port} needs_database:asgi_app";
    assert_the_last_one_stays(line);
}

#[test]
fn the_last_worker_of_uwsgi_is_not_recycled_while_the_application_cannot_start() {
    // With need-app it stops as a whole if a worker cannot load the application; without, the
    // worker would answer with errors.
    let line = "pyuwsgi --master --lazy-apps -p 2 --http {address} -w needs_database:app";
    assert_the_last_one_stays(line);
    assert_the_last_one_stays(&format!("{line} --need-app"));
}

/// One of two workers dies while no other can start. The other one continues to serve, the dead one
/// is replaced later, and a worker that waits before its exit does not delay a stop.
#[test]
fn a_worker_killed_at_its_cap_loses_only_its_own_request_while_no_other_can_start() {
    let _turn = turn::beside();
    let (database, port) = (Database::new(), free_port());
    // A sync worker handles one request at a time, so its death costs no other one.
    let command = gunicorn(NEWEST, port, "sync");
    let options = ["--ceiling", "150M", "--cap", "250M"];
    let service = database.plan(&options, &command).start();
    let before = service.ready(2);
    if before["caps"]["mechanism"] == "rlimit" {
        println!("NOT RUN: needs a memory cgroup to enforce the cap");
        return;
    }
    let others = load(port, "/pid").start();
    database.goes_away();
    let runaway = load(port, "/pid").once("/alloc?mb=1000&rate=1000");
    assert!(runaway.is_err(), "{runaway:?}");
    let status = failed_starts(&service, 2);
    assert_eq!(before["command_pid"], status["command_pid"], "{status:#}");
    database.comes_back();
    let after = service.ready(2);
    let outcome = others.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    assert_eq!(before["command_pid"], after["command_pid"], "{after:#}");
    database.goes_away();
    send(pids(&after)[0], Signal::SIGKILL);
    failed_starts(&service, 4);
    assert_eq!(service.stop(SOON).code(), Some(0));
}

#[test]
fn a_reload_while_the_application_cannot_start_is_refused_and_all_workers_stay() {
    let _turn = turn::beside();
    let (database, port) = (Database::new(), free_port());
    let service = database
        .plan(&[], &gunicorn(NEWEST, port, "gthread"))
        .start();
    let before = service.ready(2);
    database.goes_away();
    let answer = service.client(&["reload"]);
    let stderr = String::from_utf8_lossy(&answer.stderr);
    assert!(
        !answer.status.success() && stderr.contains("cannot start"),
        "{stderr}"
    );
    let status = failed_starts(&service, 1);
    for worker in workers(&before) {
        let stays = |one: &&Value| one["id"] == worker["id"] && one["state"] == "ready";
        assert!(workers(&status).iter().any(|one| stays(&one)), "{status:#}");
    }
    database.comes_back();
    service.wait("recycling to resume", SOON, || {
        let status = service.status()?;
        (status["recycling"]["suspended"] == false).then_some(())
    });
    assert!(service.client(&["reload"]).status.success());
    assert_eq!(service.stop(SOON).code(), Some(0));
}

/// The exit status and the log of a service whose first start fails.
fn first_start(plan: Plan) -> (Option<i32>, String) {
    let ended = plan.run(SOON);
    (ended.status.code(), ended.stderr)
}

#[test]
fn a_failed_first_start_has_the_exit_status_of_bare_gunicorn() {
    let _turn = turn::beside();
    let (database, port) = (Database::new(), free_port());
    database.goes_away();
    for more in [&[][..], &["--preload"]] {
        let mut command = gunicorn(NEWEST, port, "sync");
        // With two workers that fail at the same time, a master exits with 1 if it sees the second
        // failure while it stops.
        command.extend(["-w", "1"].map(str::to_owned));
        command.extend(more.iter().map(ToString::to_string));
        let (bare, _) = first_start(Plan::bare(&command).env("AWAY", database.away.display()));
        let (ours, log) = first_start(database.plan(&["--restart", "never"], &command));
        assert_eq!(ours, bare, "{log}");
        assert!(log.contains("the database is away"), "{log}");
    }
}

#[test]
fn a_program_that_failed_to_start_after_a_recycle_is_not_recycled_again_soon() {
    let _turn = turn::beside();
    let database = Database::new();
    let python = python();
    let command = [python.as_str(), "job_with_database.py"];
    let service = database.plan(&["--min-age", "20s"], &command).start();
    service.ready(1);
    database.goes_away();
    std::thread::scope(|scope| {
        let recycle = scope.spawn(|| service.client(&["recycle", "--all"]));
        service.wait("a failed start", SOON, || {
            service.events_of("recycling-suspended").pop()
        });
        database.comes_back();
        assert!(recycle.join().unwrap().status.success());
    });
    let status = service.ready(1);
    assert_eq!(status["recycling"]["suspended"], true, "{status:#}");
    // An operator may still recycle it.
    assert!(service.client(&["recycle", "--all"]).status.success());
    assert_eq!(service.stop(SOON).code(), Some(0));
}

#[test]
fn without_the_agent_a_warning_says_that_a_failed_boot_ends_the_service() {
    let _turn = turn::beside();
    let (database, port) = (Database::new(), free_port());
    let command = gunicorn(NEWEST, port, "sync");
    let service = database.plan(&["--agent", "off"], &command).start();
    service.ready(2);
    service.wait("a warning", SOON, || service.warnings("cannot boot").pop());
    assert_eq!(service.stop(SOON).code(), Some(0));
}
