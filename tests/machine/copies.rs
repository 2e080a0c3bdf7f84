//! A new copy of a fleet that is no replacement: it hangs at its start, exits at once, answers with
//! failures, or is too large. The others serve on, the reason is told, and nothing loops.

use std::{fs, path::PathBuf, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    client::{Load, Running},
    http::Failure,
    service::{Plan, Service, free_port, recycles, send},
    status::{pids, workers},
    turn,
    venv::{NEWEST, python},
};

const SOON: Duration = Duration::from_secs(60);

/// A fleet of two copies that start as a file says, under load.
struct Fleet {
    service: Service,
    _dir: TempDir,
    mode: PathBuf,
    before: Vec<i32>,
    load: Running,
}

impl Fleet {
    fn start(options: &[&str], ready: impl Fn(u16) -> Vec<String>) -> Self {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let mode = dir.path().join("mode");
        let address = format!("127.0.0.1:{port}");
        let ready = ready(port);
        let fixed = ["-n", "2", "--listen", &address, "--surge-idle", "1s"];
        let ready: Vec<_> = ready.iter().map(String::as_str).collect();
        let options = [&fixed, options, &ready].concat();
        let command = [NEWEST.bin("uvicorn"), "fails_as_told:app".to_owned()];
        let plan = Plan::supervise(&options, &command).env("MODE", mode.display());
        let service = plan.start();
        let before = pids(&service.ready(2));
        let load = Load {
            rate: Some(100.0),
            keep_alive: false,
            lasts: Duration::from_secs(3600),
            ..Load::on(port)
        };
        Self {
            service,
            _dir: dir,
            mode,
            before,
            load: load.start(),
        }
    }

    /// Replaces all copies. New ones start like this.
    fn replace(&self, mode: &str) {
        fs::write(&self.mode, mode).unwrap();
        send(self.service.pid(), Signal::SIGHUP);
    }

    /// Waits until recycling is suspended and this many starts have failed.
    #[track_caller]
    fn suspended(&self, failed: u64) -> Value {
        self.service.wait("recycling to be suspended", SOON, || {
            let status = self.service.status()?;
            let is_it = status["recycling"]["suspended"] == true
                && status["totals"]["failed_starts"].as_u64()? >= failed;
            is_it.then_some(status)
        })
    }

    #[track_caller]
    fn assert_old_copies_serve(&self) {
        let status = self.service.status().unwrap();
        let serving = workers(&status).iter().filter(|it| it["state"] == "ready");
        let pid = |it: &Value| i32::try_from(it["pid"].as_i64().unwrap()).unwrap();
        let serving: Vec<_> = serving.map(pid).collect();
        assert_eq!(serving, self.before, "{}", self.service.log());
    }

    /// New copies start as they should: all are replaced, and their number is as before.
    #[track_caller]
    fn recovers(self) -> super::client::Outcome {
        let _ = fs::remove_file(&self.mode);
        self.service.wait("all copies to be replaced", SOON, || {
            let answer = self.service.client(&["recycle", "--all"]);
            answer.status.success().then_some(())
        });
        let after = pids(&self.service.ready(2));
        let is_new = after.iter().all(|pid| !self.before.contains(pid));
        assert!(is_new, "{}", self.service.log());
        self.load.finish()
    }
}

#[test]
fn a_copy_that_hangs_at_its_start_replaces_no_other_and_is_told() {
    let _turn = turn::loaded();
    let fleet = Fleet::start(&["--ready-timeout", "3s"], |_| vec![]);
    fleet.replace("hang");
    let service = &fleet.service;
    let warning = service.wait("the warning", SOON, || {
        service.warnings("is not ready after 3s").pop()
    });
    assert!(warning.contains("no worker is replaced"), "{warning}");
    fleet.assert_old_copies_serve();
    assert_eq!(service.events_of("raised").len(), 1);
    let hung = service.status().unwrap();
    let hung = pids(&hung)
        .into_iter()
        .find(|pid| !fleet.before.contains(pid));
    fs::remove_file(&fleet.mode).unwrap();
    send(hung.unwrap(), Signal::SIGKILL);
    let outcome = fleet.recovers();
    assert_eq!(outcome.failed(), 0, "{outcome}");
}

/// A copy that cannot start is started again after pauses, and recycling is suspended once.
#[track_caller]
fn assert_failed_start_is_told_once(mode: &str, how: &str) {
    let _turn = turn::loaded();
    let fleet = Fleet::start(&[], |_| vec![]);
    fleet.replace(mode);
    let status = fleet.suspended(3);
    let why = status["recycling"]["why"].as_str().unwrap();
    assert!(why.ends_with(how), "{why}");
    fleet.assert_old_copies_serve();
    assert_eq!(fleet.service.events_of("recycling-suspended").len(), 1);
    let outcome = fleet.recovers();
    assert_eq!(outcome.failed(), 0, "{outcome}");
}

#[test]
fn a_copy_that_exits_at_once_replaces_no_other_and_recycling_is_suspended() {
    assert_failed_start_is_told_once("exit", "exited with status 1 before it was ready");
}

#[test]
fn a_copy_that_exits_with_0_replaces_no_other_and_recycling_is_suspended() {
    assert_failed_start_is_told_once("exit-0", "exited with status 0 before it was ready");
}

#[test]
fn a_copy_that_answers_its_probe_with_500_is_stopped_and_replaces_no_other() {
    let _turn = turn::loaded();
    let probe = |port| vec!["--ready".to_owned(), format!("http://127.0.0.1:{port}/pid")];
    let fleet = Fleet::start(&[], probe);
    fleet.replace("500");
    let service = &fleet.service;
    let status = fleet.suspended(1);
    let why = status["recycling"]["why"].as_str().unwrap();
    assert!(
        why.ends_with("answered its readiness probe with status 500"),
        "{why}"
    );
    service.wait("the end of the copy", SOON, || {
        let ends = service.events_of("worker-ended");
        ends.iter().find(|end| end["cause"] == "unready").cloned()
    });
    fleet.assert_old_copies_serve();
    // It is not started again before recycling resumes.
    fleet.load.wait_for_answers(300);
    assert_eq!(
        service.events_of("worker-ended").len(),
        1,
        "{}",
        service.log()
    );
    assert_eq!(service.events_of("raised").len(), 1, "{}", service.log());
    let outcome = fleet.load.finish();
    // It accepts from the same socket, so it gets requests until its probe is answered.
    let answered = outcome.failures.get(&Failure::BadStatus(500)).copied();
    assert_eq!(outcome.failed(), answered.unwrap_or(0), "{outcome}");
    assert!(outcome.failed() < 100, "{outcome}");
}

#[test]
fn a_copy_that_is_born_over_its_ceiling_is_not_replaced_again_and_again() {
    let _turn = turn::loaded();
    let limits = ["--ceiling", "100M", "--cap", "600M", "--min-age", "2s"];
    let fleet = Fleet::start(&limits, |_| vec![]);
    fleet.replace("large");
    let service = &fleet.service;
    let warning = service.wait("recycling to be stopped", SOON, || {
        service.warnings("recycling cannot help").pop()
    });
    assert!(warning.contains("the ceiling is 100M"), "{warning}");
    let times = recycles(&service.status().unwrap(), "ceiling");
    assert!(times <= 5, "{times} recycles: {}", service.log());
    let outcome = fleet.load.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}");
}

#[test]
fn copies_with_a_probe_are_replaced_without_loss_when_they_have_answered_it_themselves() {
    let _turn = turn::loaded();
    for probe in ["http", "tcp"] {
        let ready = |port| {
            let http = format!("http://127.0.0.1:{port}/pid");
            let tcp = format!("tcp:127.0.0.1:{port}");
            let when = if probe == "http" { http } else { tcp };
            vec!["--ready".to_owned(), when]
        };
        let fleet = Fleet::start(&[], ready);
        let outcome = fleet.recovers();
        assert_eq!(outcome.failed(), 0, "{probe}: {outcome}");
    }
}

/// It says so when the file exists, and then waits for nothing.
const NOTIFIES: &str = "import os, socket, sys, time
while not os.path.exists(sys.argv[1]): time.sleep(0.02)
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])
time.sleep(3600)";

#[test]
fn a_copy_is_ready_when_it_has_sent_its_own_message() {
    let _turn = turn::beside();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("up");
    fs::write(&file, "").unwrap();
    let command = [&*python(), "-c", NOTIFIES, file.to_str().unwrap()];
    let options = ["-n", "2", "--ready", "notify", "--ready-timeout", "3s"];
    let service = Plan::supervise(&options, &command).start();
    let before = pids(&service.ready(2));
    fs::remove_file(&file).unwrap();
    send(service.pid(), Signal::SIGHUP);
    service.wait("the warning", SOON, || {
        service.warnings("send READY=1").pop()
    });
    let status = service.status().unwrap();
    assert!(
        before.iter().all(|pid| pids(&status).contains(pid)),
        "{status:#}"
    );
    fs::write(&file, "").unwrap();
    service.wait("other copies", SOON, || {
        let now = service.status()?;
        let replaced = pids(&now).iter().all(|pid| !before.contains(pid));
        (replaced && recycles(&now, "reload") == 2).then_some(())
    });
    assert_eq!(service.stop(SOON).code(), Some(0));
}
