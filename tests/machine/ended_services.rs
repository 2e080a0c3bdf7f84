//! Reports and events of services that have ended.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    clock::poll,
    service::{Plan, SUPERVISE},
};

const SOON: Duration = Duration::from_secs(20);

/// A user's directories.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(TempDir::new().unwrap());
        for name in ["run", "state"] {
            fs::create_dir(home.at(name)).unwrap();
        }
        home
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `supervise` in the directory `here`.
    fn supervise(&self, here: &Path, words: &[&str]) -> Output {
        Command::new(SUPERVISE)
            .args(words)
            .current_dir(here)
            .env("XDG_RUNTIME_DIR", self.at("run"))
            .env("XDG_STATE_HOME", self.at("state"))
            .env("HOME", self.at("run"))
            .env_remove("STATE_DIRECTORY")
            .env_remove("RUNTIME_DIRECTORY")
            .env_remove("SUPERVISE_LEAKS_DIRECTORY")
            .output()
            .unwrap()
    }

    /// Makes a directory with a script that exits with this status.
    fn script(&self, directory: &str, status: u8) -> PathBuf {
        let path = self.at(directory);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("kept_job.sh"), format!("exit {status}\n")).unwrap();
        path
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn events_of_an_ended_job_are_found_by_its_name_and_directory() {
    let home = Home::new();
    let (one, other) = (home.script("one", 0), home.script("other", 3));
    for (here, status) in [(&one, 0), (&other, 3)] {
        let ended = home.supervise(here, &["--restart", "never", "--", "sh", "kept_job.sh"]);
        assert_eq!(ended.status.code(), Some(status), "{}", stderr(&ended));
    }
    for (here, words, cause) in [
        (&one, &["events", "kept_job", "--json"][..], "exit:0"),
        (
            &other,
            &["events", "--name", "kept_job", "--json"],
            "exit:3",
        ),
        // The only service that ran in this directory.
        (&other, &["events", "--json"], "exit:3"),
    ] {
        // Without a name, a service of another test that runs meanwhile as the machine's only one
        // is meant.
        let shown = poll(SOON, || {
            let shown = home.supervise(here, words);
            let is_kept = stderr(&shown).contains("`kept_job` is not running");
            is_kept.then_some(shown)
        });
        let shown = shown.unwrap_or_else(|| panic!("{words:?} shows nothing that was kept"));
        assert!(shown.status.success(), "{}", stderr(&shown));
        let text = stdout(&shown);
        let events: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let ends: Vec<_> = events
            .iter()
            .filter(|event| event["event"] == "worker-ended")
            .map(|event| event["cause"].clone())
            .collect();
        assert_eq!(ends, [cause], "{text}");
        assert_eq!(
            events.last().map(|it| it["event"].clone()),
            Some("stopped".into()),
            "{text}"
        );
    }
    let shown = home.supervise(&one, &["events", "kept_job"]);
    assert!(stdout(&shown).contains(" stopped "), "{}", stdout(&shown));

    let shown = home.supervise(&one, &["events", "kept_job", "--follow"]);
    assert_eq!(shown.status.code(), Some(2), "{}", stderr(&shown));
    let shown = home.supervise(&one, &["report", "kept_job"]);
    assert_eq!(shown.status.code(), Some(1), "{}", stderr(&shown));
    assert!(
        stderr(&shown).contains("no report is kept"),
        "{}",
        stderr(&shown)
    );
    let shown = home.supervise(&one, &["events", "nobody"]);
    assert_eq!(shown.status.code(), Some(2));
    let text = stderr(&shown);
    assert!(
        text.contains("no reports or events of it are kept"),
        "{text}"
    );
}

#[test]
fn a_report_is_found_while_its_service_runs_elsewhere_and_after_it_has_ended() {
    let home = Home::new();
    let name = format!("kept-{}", std::process::id());
    let kept = home.at("kept");
    let options = [
        "--name",
        &name,
        "--ready",
        "delay:10ms",
        "--leaks-directory",
        &kept.display().to_string(),
    ];
    let service =
        Plan::supervise(&options, &["python3", "-c", "import time; time.sleep(99)"]).start();
    service.ready(1);
    // The socket is not in a default directory: the client finds it through the kept files.
    let words = [
        "--leaks-directory",
        options[5],
        "report",
        &name,
        "w1",
        "--json",
    ];
    let asked = home.supervise(&home.at("run"), &words);
    assert!(asked.status.success(), "{}", stderr(&asked));
    let report: Value = serde_json::from_str(&stdout(&asked)).unwrap();
    assert_eq!(report["id"], "r1");
    service.stop(SOON);

    for (more, shown) in [
        (&["--json"][..], "[{"),
        (&["r1", "--json"], "{"),
        (&["r1"], "verdict "),
    ] {
        let words = [&words[..4], more].concat();
        let read = home.supervise(&home.at("run"), &words);
        assert!(read.status.success(), "{}", stderr(&read));
        assert!(stdout(&read).starts_with(shown), "{}", stdout(&read));
    }
    for (more, text) in [
        ("w1", "the service has ended; kept reports: r1"),
        ("r9", "kept reports: r1"),
    ] {
        let words = [&words[..4], &[more]].concat();
        let read = home.supervise(&home.at("run"), &words);
        assert_eq!(read.status.code(), Some(1));
        assert!(stderr(&read).contains(text), "{}", stderr(&read));
    }
}
