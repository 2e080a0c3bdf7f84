//! Launchers around the command, and `supervise` as PID 1.

use std::{process::Command, time::Duration};

use nix::sys::signal::Signal;

use super::{
    client::Load,
    clock, proc,
    service::{Plan, free_port, send},
    status::pids,
    turn,
    venv::{FLASK, G23, NEWEST, OTHERS, programs, python},
};

const SOON: Duration = Duration::from_secs(20);

/// Asserts that the server of `plan` is recognised as one with two workers, and stops.
#[track_caller]
fn assert_is_server(port: u16, plan: Plan) {
    let service = plan.start();
    let status = service.ready(2);
    assert_eq!(status["mode"], "server", "{status:#}");
    let answered = Load::on(port).once("/pid").unwrap();
    assert!(pids(&status).contains(&answered), "{status:#}");
    assert_eq!(service.stop(SOON).code(), Some(0));
}

#[test]
fn a_gunicorn_behind_a_shell_script_is_recognised_when_it_runs() {
    let _turn = turn::beside();
    let port = free_port();
    // The name of a script does not say what it executes.
    let wrapper = programs().join("wrapper.sh").display().to_string();
    let mut words = vec![wrapper];
    words.extend(NEWEST.gunicorn(port, FLASK));
    assert_is_server(port, Plan::supervise(&[], &words));
}

#[test]
fn the_uvicorn_of_fastapi_run_is_recognised_when_its_workers_run() {
    let _turn = turn::beside();
    let port = free_port();
    let fastapi = NEWEST.bin("fastapi");
    let number = port.to_string();
    let words = [
        &*fastapi,
        "run",
        "--workers",
        "2",
        "--host",
        "127.0.0.1",
        "--port",
        &number,
        "api.py",
    ];
    assert_is_server(port, Plan::supervise(&[], &words));
}

#[test]
fn a_hypercorn_is_not_taken_for_a_uvicorn() {
    let _turn = turn::beside();
    let port = free_port();
    let hypercorn = OTHERS.bin("hypercorn");
    let address = format!("127.0.0.1:{port}");
    let words = [&*hypercorn, "-w", "2", "-b", &address, "leaky_asgi:app"];
    let service = Plan::supervise(&[], &words).start();
    let load = Load::on(port);
    service.wait("an answer", SOON, || load.once("/").ok());
    let answers = clock::now();
    // By then, a uvicorn would have been recognised.
    service.wait("several searches for a server", SOON, || {
        (answers.elapsed() >= Duration::from_secs(4)).then_some(())
    });
    let found = service.events_of("server-found").pop().unwrap_or_default();
    assert_eq!(found["server"], "hypercorn");
}

#[test]
fn a_gunicorn_behind_a_shell_is_recognised() {
    let _turn = turn::beside();
    let port = free_port();
    let line = NEWEST.gunicorn(port, FLASK).join(" ");
    // With two commands the shell does not replace itself by the last one.
    let words = ["/bin/sh", "-c", &format!("{line}; echo over")];
    assert_is_server(port, Plan::supervise(&[], &words));
}

#[test]
fn a_gunicorn_that_renames_its_process_is_recognised() {
    let _turn = turn::beside();
    let port = free_port();
    assert_is_server(port, Plan::supervise(&[], &G23.gunicorn(port, FLASK)));
}

#[test]
fn a_gunicorn_started_as_a_module_is_recognised() {
    let _turn = turn::beside();
    let port = free_port();
    let mut words = vec![NEWEST.bin("python"), "-m".to_owned(), "gunicorn".to_owned()];
    words.extend(NEWEST.gunicorn(port, FLASK).split_off(1));
    assert_is_server(port, Plan::supervise(&[], &words));
}

#[test]
fn a_gunicorn_behind_uv_is_recognised() {
    let _turn = turn::beside();
    let port = free_port();
    let uv = NEWEST.bin("uv");
    let python = NEWEST.bin("python");
    let mut words = vec![uv];
    words.extend(["run", "--no-project", "--offline", "--python", &python].map(str::to_owned));
    words.extend(NEWEST.gunicorn(port, FLASK));
    assert_is_server(port, Plan::supervise(&[], &words));
}

#[test]
fn as_pid_1_supervise_reaps_orphans() {
    let _turn = turn::beside();
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    if !can_run(&unshare) {
        println!("NOT RUN: needs the right to make a PID namespace");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s.sock").display().to_string();
    let supervise = env!("CARGO_BIN_EXE_supervise");
    let python = python();
    let mut words = unshare.to_vec();
    words.extend([supervise, "--socket", &socket, "--restart", "never", "--"]);
    words.extend([&python, "orphans.py", "600"]);
    let mut service = Plan::bare(&words).start();
    service.wait_for_output("ready", SOON);
    let init = proc::children(service.pid())[0];
    // As with `docker exec`: PID 1 becomes the parent of the orphans it leaves.
    let target = init.to_string();
    let stranger = Command::new("nsenter")
        .args(["--target", &target, "--pid", &python, "orphans.py", "0"])
        .current_dir(programs())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&stranger.stdout);
    assert!(said.contains("their parent is 1"), "{stranger:?}");
    service.wait("no zombies", SOON, || {
        let mut family = vec![init];
        while let Some(pid) = family.pop() {
            if !proc::is_alive(pid) {
                return None;
            }
            family.extend(proc::children(pid));
        }
        Some(())
    });
    send(init, Signal::SIGTERM);
    service.ends(SOON);
}

fn can_run(unshare: &[&str]) -> bool {
    Command::new(unshare[0])
        .args(&unshare[1..])
        .arg("true")
        .status()
        .is_ok_and(|status| status.success())
}

#[test]
fn a_job_that_ends_before_it_is_ready_causes_no_wait() {
    let _turn = turn::beside();
    let begun = clock::now();
    let words = ["/bin/sh", "-c", "exit 0"];
    let ended = Plan::supervise(&["--restart", "never"], &words).run(SOON);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(clock::now() - begun < Duration::from_secs(5));
}
