//! What stands around us: launchers, a container's PID 1, the examples.

use std::{process::Command, time::Duration};

use nix::sys::signal::Signal;

use super::{
    client::Load,
    clock,
    house::{Plan, free_port, pids, send},
    proc, turn,
    venv::{FLASK, G23, NEWEST, programs, python},
};

const SOON: Duration = Duration::from_secs(20);

/// Gunicorn started by `plan` is a server of two workers, and ends when it is told to.
#[track_caller]
fn is_a_server(port: u16, plan: Plan) {
    let house = plan.start();
    let status = house.ready(2);
    assert_eq!(status["mode"], "server", "{status:#}");
    let answered = Load::on(port).once("/pid").unwrap();
    assert!(pids(&status).contains(&answered), "{status:#}");
    assert_eq!(house.stop(SOON).code(), Some(0));
}

#[test]
fn a_gunicorn_behind_a_shell_script_is_found_once_it_is_named() {
    let _turn = turn::beside();
    let port = free_port();
    // What a script will execute cannot be read from its name.
    let wrapper = programs().join("wrapper.sh").display().to_string();
    let mut words = vec![wrapper];
    words.extend(NEWEST.gunicorn(port, FLASK));
    is_a_server(port, Plan::supervise(&["--server", "gunicorn"], &words));
}

#[test]
fn a_gunicorn_behind_a_shell_is_found() {
    let _turn = turn::beside();
    let port = free_port();
    let line = NEWEST.gunicorn(port, FLASK).join(" ");
    // Two commands, so that the shell does not execute the last one in its own place.
    let words = ["/bin/sh", "-c", &format!("{line}; echo over")];
    is_a_server(port, Plan::supervise(&[], &words));
}

#[test]
fn a_gunicorn_that_renames_itself_is_found() {
    let _turn = turn::beside();
    let port = free_port();
    is_a_server(port, Plan::supervise(&[], &G23.gunicorn(port, FLASK)));
}

#[test]
fn a_gunicorn_started_as_a_module_is_found() {
    let _turn = turn::beside();
    let port = free_port();
    let mut words = vec![NEWEST.bin("python"), "-m".to_owned(), "gunicorn".to_owned()];
    words.extend(NEWEST.gunicorn(port, FLASK).split_off(1));
    is_a_server(port, Plan::supervise(&[], &words));
}

#[test]
fn a_gunicorn_behind_uv_is_found() {
    let _turn = turn::beside();
    let port = free_port();
    let uv = NEWEST.bin("uv");
    let python = NEWEST.bin("python");
    let mut words = vec![uv];
    words.extend(["run", "--no-project", "--offline", "--python", &python].map(str::to_owned));
    words.extend(NEWEST.gunicorn(port, FLASK));
    is_a_server(port, Plan::supervise(&[], &words));
}

#[test]
fn as_pid_1_strangers_are_reaped() {
    let _turn = turn::beside();
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    if !works(&unshare) {
        println!("no right to make a PID namespace here: not tested");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s.sock").display().to_string();
    let supervise = env!("CARGO_BIN_EXE_supervise");
    let python = python();
    let mut words = unshare.to_vec();
    words.extend([supervise, "--socket", &socket, "--restart", "never", "--"]);
    words.extend([&python, "orphans.py", "600"]);
    let mut house = Plan::bare(&words).start();
    house.wait_for_output("ready", SOON);
    let init = proc::children(house.pid())[0];
    // As `docker exec` does: what it leaves is nobody's but PID 1's.
    let target = init.to_string();
    let stranger = Command::new("nsenter")
        .args(["--target", &target, "--pid", &python, "orphans.py", "0"])
        .current_dir(programs())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&stranger.stdout);
    assert!(said.contains("their parent is 1"), "{stranger:?}");
    house.wait("no zombies", SOON, || {
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
    house.ends(SOON);
}

fn works(unshare: &[&str]) -> bool {
    Command::new(unshare[0])
        .args(&unshare[1..])
        .arg("true")
        .status()
        .is_ok_and(|status| status.success())
}

#[test]
fn time_is_not_lost_by_a_service_that_never_becomes_ready() {
    let _turn = turn::beside();
    let begun = clock::now();
    let words = ["/bin/sh", "-c", "exit 0"];
    let ended = Plan::supervise(&["--restart", "never"], &words).run(SOON);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(clock::now() - begun < Duration::from_secs(5));
}
