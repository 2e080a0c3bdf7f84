//! The service of the scenarios, run by systemd: `/etc/supervise/shop.toml`.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::Value;

pub(crate) use super::status::{pids, workers};
use super::{
    cgroup,
    client::Load,
    clock,
    machine::{LONG, PROGRAMS, sh, show, text, try_sh},
};

pub(crate) const UNIT: &str = "supervise@shop";

/// Its TCP port.
pub(crate) const PORT: u16 = 8000;

const CONFIG: &str = "/etc/supervise/shop.toml";
const DROP_INS: &str = "/etc/systemd/system/supervise@shop.service.d";

/// The configuration of the service.
#[derive(Clone, Debug)]
pub(crate) struct Plan<'a> {
    /// Additional arguments for gunicorn.
    pub words: &'static str,
    /// How much each request leaks.
    pub leak_kb: u32,
    /// Additional lines before the first table.
    pub top: &'static str,
    /// Additional tables of the configuration.
    pub more: &'static str,
    /// A drop-in of the unit.
    pub drop_in: &'a str,
}

/// Two sync workers: a request that kills its worker takes no other request with it.
pub(crate) const PLAN: Plan<'static> = Plan {
    words: "",
    leak_kb: 0,
    top: "",
    more: "[memory]\nceiling = \"60M\"\ncap = \"120M\"\n",
    drop_in: "",
};

/// The running service. It is stopped when this is dropped.
#[derive(Debug)]
pub(crate) struct Shop {
    /// How long `systemctl start` took.
    pub took: Duration,
}

impl Plan<'_> {
    fn text(&self) -> String {
        let Self {
            words,
            leak_kb,
            top,
            more,
            ..
        } = self;
        format!(
            "command = [\"python3\", \"-m\", \"gunicorn\", \"-w\", \"2\", \"-t\", \"0\", \
             {words}\"-b\", \"127.0.0.1:{PORT}\", \"churn:app\"]\n\
             directory = \"{PROGRAMS}\"\n{top}\
             [env]\nLEAK_KB = {leak_kb}\nPYTHONDONTWRITEBYTECODE = 1\n{more}"
        )
    }

    /// Writes the files and starts the unit; returns when systemd does.
    #[track_caller]
    pub(crate) fn start(&self) -> Shop {
        start(&self.text(), self.drop_in)
    }
}

/// Writes these files and starts the unit; returns when systemd does.
#[track_caller]
pub(crate) fn start(config: &str, drop_in: &str) -> Shop {
    fs::write(CONFIG, config).expect("write the configuration");
    if !drop_in.is_empty() {
        fs::create_dir_all(DROP_INS).expect("make a folder for the drop-in");
        fs::write(format!("{DROP_INS}/test.conf"), drop_in).expect("write the drop-in");
        sh("systemctl daemon-reload");
    }
    let begun = clock::now();
    let started = try_sh(&format!("systemctl start {UNIT}"));
    let took = clock::now() - begun;
    // From here on it is stopped even if the test panics.
    let shop = Shop { took };
    assert!(
        started.status.success(),
        "{}\n{}",
        text(&started.stderr),
        journal()
    );
    shop
}

impl Shop {
    /// `supervise status --json`.
    pub(crate) fn status(&self) -> Option<Value> {
        let output = try_sh("supervise status --name shop --json");
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Waits until there are exactly two workers, both ready.
    #[track_caller]
    pub(crate) fn ready(&self) -> Value {
        self.wait("two ready workers", || {
            self.status().filter(|status| {
                let workers = workers(status);
                workers.len() == 2 && workers.iter().all(|worker| worker["state"] == "ready")
            })
        })
    }

    /// Waits until `look` returns a value.
    #[track_caller]
    pub(crate) fn wait<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        clock::poll(LONG, look).unwrap_or_else(|| panic!("waited for {what}\n{}", journal()))
    }

    /// The cgroup of the unit.
    pub(crate) fn group(&self) -> PathBuf {
        let path = show(UNIT, "ControlGroup");
        PathBuf::from(format!("/sys/fs/cgroup{path}"))
    }

    /// The pids of all its processes.
    pub(crate) fn processes(&self) -> Vec<i32> {
        cgroup::processes(&self.group())
    }

    /// The pid of the supervisor.
    pub(crate) fn pid(&self) -> i32 {
        show(UNIT, "MainPID").parse().expect("a pid")
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        try_sh(&format!(
            "systemctl stop {UNIT}; systemctl reset-failed {UNIT}"
        ));
        if fs::remove_dir_all(DROP_INS).is_ok() {
            try_sh("systemctl daemon-reload");
        }
    }
}

/// A load at a rate that an emulated CPU can serve.
pub(crate) fn load(rate: f64) -> Load {
    Load {
        connections: 4,
        keep_alive: false,
        rate: Some(rate),
        lasts: 10 * LONG,
        timeout: LONG,
        ..Load::on(PORT)
    }
}

/// The ends of a status.
pub(crate) fn ends(status: &Value) -> &[Value] {
    status["ends"].as_array().map_or(&[], Vec::as_slice)
}

/// The last lines of its log.
fn journal() -> String {
    text(&try_sh(&format!("journalctl -u {UNIT} -n 40 --no-pager -o cat")).stdout)
}
