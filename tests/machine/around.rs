//! What stands around us: launchers, a service manager, a container's PID 1, the examples.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{
    client::Load,
    clock,
    house::{House, Plan, free_port, pids, send},
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
fn the_service_manager_is_told() {
    let _turn = turn::beside();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let port = free_port();
    let house = Plan::supervise(&["--ceiling", "200M"], &NEWEST.gunicorn(port, FLASK))
        .env("NOTIFY_SOCKET", path.display())
        .env("WATCHDOG_USEC", 400_000)
        .start();
    let first = hear(&house, &socket, "READY=1");
    // Gunicorn would say so itself, before it has a worker.
    assert!(!first.contains("Gunicorn"), "{first}");
    // Whoever is told so may ask at once.
    assert!(Load::on(port).once("/pid").is_ok());
    hear(&house, &socket, "STATUS=");
    hear(&house, &socket, "WATCHDOG=1");
    thread::scope(|scope| {
        // It returns when the reload is over; nobody else empties the socket meanwhile.
        let reload = scope.spawn(|| house.client(&["reload"]));
        let told = hear(&house, &socket, "RELOADING=1");
        assert!(told.contains("MONOTONIC_USEC="), "{told}");
        hear(&house, &socket, "READY=1");
        assert!(reload.join().unwrap().status.success());
    });
    house.signal(Signal::SIGTERM);
    hear(&house, &socket, "STOPPING=1");
}

/// Waits for a message with a line that begins so; what was said up to it, and the message.
#[track_caller]
fn hear(house: &House, socket: &UnixDatagram, wanted: &str) -> String {
    let mut told = String::new();
    house.wait(wanted, SOON, || {
        let mut buffer = [0; 4096];
        while let Ok(count) = socket.recv(&mut buffer) {
            let message = String::from_utf8_lossy(&buffer[..count]);
            told.push_str(&message);
            told.push('\n');
            if message.lines().any(|line| line.starts_with(wanted)) {
                return Some(());
            }
        }
        None
    });
    told
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
fn systemd_takes_the_unit() {
    let unit = repository().join("systemd/supervise@.service");
    assert!(unit.exists(), "{}", unit.display());
    let dir = tempfile::tempdir().unwrap();
    // The unit names the installed program, which need not be installed where the tests run.
    let text = fs::read_to_string(&unit).unwrap();
    let supervise = env!("CARGO_BIN_EXE_supervise");
    let here: Vec<_> = text
        .lines()
        .map(|line| match line.split_once("/supervise ") {
            Some((before, after)) if before.starts_with("Exec") => {
                let key = before.split('=').next().unwrap_or_default();
                format!("{key}={supervise} {after}")
            }
            _ => line.to_owned(),
        })
        .collect();
    let copy = dir.path().join("supervise@shop.service");
    fs::write(&copy, here.join("\n")).unwrap();
    match Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&copy)
        .output()
    {
        Err(error) => println!("systemd-analyze: {error}: not tested"),
        Ok(output) => assert!(
            output.status.success() && output.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        ),
    }
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

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}
