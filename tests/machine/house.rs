//! One started program with all that is around it: `supervise`, or a bare server to compare with.
//!
//! Everything that it starts carries a tag in its environment. When the house is dropped nothing
//! with that tag may live on, daemons included; a test that leaves something behind fails.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpListener,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use super::{clock, proc, venv};

/// So soon must everything be gone after `supervise` is.
const GONE: Duration = Duration::from_secs(2);

/// So soon must its groups be removed. The kernel refuses that for a moment after the last process.
const TIDY: Duration = Duration::from_secs(10);

/// The program under test.
pub(crate) const SUPERVISE: &str = env!("CARGO_BIN_EXE_supervise");

/// What is to be started.
#[derive(Debug)]
pub(crate) struct Plan {
    supervise: Option<Vec<String>>,
    binary: PathBuf,
    words: Vec<String>,
    within: Vec<String>,
    env: Vec<(String, String)>,
    config: Option<String>,
    stderr: Option<Stdio>,
    handed: Option<OwnedFd>,
}

impl Plan {
    /// `supervise OPTIONS -- COMMAND`, its socket in a directory of its own.
    pub(crate) fn supervise(options: &[&str], command: &[impl ToString]) -> Self {
        Self {
            supervise: Some(options.iter().map(ToString::to_string).collect()),
            ..Self::bare(command)
        }
    }

    /// COMMAND without a supervisor.
    pub(crate) fn bare(command: &[impl ToString]) -> Self {
        Self {
            supervise: None,
            binary: SUPERVISE.into(),
            words: command.iter().map(ToString::to_string).collect(),
            within: Vec::new(),
            env: Vec::new(),
            config: None,
            stderr: None,
            handed: None,
        }
    }

    /// Handed this socket as systemd does it (sd_listen_fds(3)).
    pub(crate) fn handed(mut self, socket: impl Into<OwnedFd>) -> Self {
        self.handed = Some(socket.into());
        self
    }

    /// With this variable in the environment.
    pub(crate) fn env(mut self, key: &str, value: impl ToString) -> Self {
        self.env.push((key.to_owned(), value.to_string()));
        self
    }

    /// Started by these words, which execute what follows them.
    pub(crate) fn within(mut self, words: &[&str]) -> Self {
        self.within = words.iter().map(ToString::to_string).collect();
        self
    }

    /// With this configuration file.
    pub(crate) fn config(mut self, text: &str) -> Self {
        self.config = Some(text.to_owned());
        self
    }

    /// With `supervise` under this path.
    pub(crate) fn binary(mut self, path: &Path) -> Self {
        self.binary = path.to_owned();
        self
    }

    /// With this as its stderr instead of a file.
    pub(crate) fn stderr(mut self, stderr: Stdio) -> Self {
        self.stderr = Some(stderr);
        self
    }

    /// Starts it.
    pub(crate) fn start(self) -> House {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let tag = format!("HOUSE_OF_TEST={}-{number}", std::process::id());
        let dir = TempDir::new().expect("make a temporary directory");
        let mut command = self.command(dir.path());
        if self.handed.is_some() {
            command = activated(&command);
        }
        let (key, value) = tag.split_once('=').expect("written above");
        command.env(key, value).envs(self.env);
        command
            .stdin(self.handed.map_or_else(Stdio::null, Stdio::from))
            .stdout(file(&dir.path().join("stdout")))
            .stderr(
                self.stderr
                    .unwrap_or_else(|| file(&dir.path().join("stderr")).into()),
            );
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        House {
            child,
            dir,
            tag,
            promised: self.supervise.is_some(),
        }
    }

    /// Runs it to its end.
    pub(crate) fn run(self, limit: Duration) -> Ended {
        let mut house = self.start();
        let status = house.ends(limit);
        Ended {
            status,
            stdout: house.stdout(),
            stderr: house.log(),
        }
    }

    fn command(&self, dir: &Path) -> Command {
        let mut words = self.words.iter();
        let mut command = match &self.supervise {
            None => Command::new(words.next().expect("a bare command is not empty")),
            Some(options) => {
                let mut command = match self.within.split_first() {
                    None => Command::new(&self.binary),
                    Some((first, others)) => {
                        let mut command = Command::new(first);
                        command.args(others).arg(&self.binary);
                        command
                    }
                };
                if !options.iter().any(|word| word == "--socket") {
                    command.arg("--socket").arg(dir.join("control.sock"));
                }
                command.args(options);
                if let Some(text) = &self.config {
                    let path = dir.join("supervise.toml");
                    fs::write(&path, text).expect("write the configuration");
                    command.arg("--config").arg(path);
                }
                if !self.words.is_empty() {
                    command.arg("--");
                }
                command
            }
        };
        command
            .args(words)
            .current_dir(venv::programs())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            // Where a newer gunicorn puts a control socket of its own.
            .env("XDG_RUNTIME_DIR", dir)
            // Where reports are kept.
            .env("STATE_DIRECTORY", dir)
            .env("HOME", dir);
        command
    }
}

/// Executes `command` with its stdin as descriptor 3 and what goes with that.
fn activated(command: &Command) -> Command {
    let script = "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web; \
                  exec 3<&0 0</dev/null; exec \"$@\"";
    let mut sh = Command::new("sh");
    sh.args(["-c", script, "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        sh.env(name, value.unwrap_or_default());
    }
    if let Some(dir) = command.get_current_dir() {
        sh.current_dir(dir);
    }
    sh
}

/// What a program left that ran to its end.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it said.
    pub stdout: String,
    /// What it and `supervise` said about it.
    pub stderr: String,
}

/// A started program.
#[derive(Debug)]
pub(crate) struct House {
    child: Child,
    dir: TempDir,
    tag: String,
    /// Nobody promised anything for what is started without `supervise`.
    promised: bool,
}

impl House {
    /// The process that was started.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid is an i32")
    }

    /// The control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    /// The configuration file, if it was started with one.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.path().join("supervise.toml")
    }

    /// A file beside its socket.
    pub(crate) fn file(&self, name: &str) -> String {
        read(&self.dir.path().join(name))
    }

    /// All that it has written to stderr.
    pub(crate) fn log(&self) -> String {
        read(&self.dir.path().join("stderr"))
    }

    /// All that it has written to stdout.
    pub(crate) fn stdout(&self) -> String {
        read(&self.dir.path().join("stdout"))
    }

    /// Every live process that descends from it in any way.
    pub(crate) fn everybody(&self) -> Vec<i32> {
        proc::tagged(&self.tag)
    }

    /// Sends `signal` to the process that was started.
    pub(crate) fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// Waits until `look` has an answer; when it has none within `limit`, the test fails with the
    /// log.
    #[track_caller]
    pub(crate) fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        look: impl FnMut() -> Option<T>,
    ) -> T {
        clock::poll(limit, look).unwrap_or_else(|| {
            panic!(
                "not within {limit:?}: {what}\n--- log\n{}",
                tail(&self.log())
            )
        })
    }

    /// Waits until stdout holds `text`.
    #[track_caller]
    pub(crate) fn wait_for_output(&self, text: &str, limit: Duration) {
        self.wait(&format!("`{text}` on stdout"), limit, || {
            self.stdout().contains(text).then_some(())
        });
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn ends(&mut self, limit: Duration) -> ExitStatus {
        let status = clock::poll(limit, || self.child.try_wait().expect("wait for a child"));
        status.unwrap_or_else(|| {
            panic!(
                "did not end within {limit:?}\n--- log\n{}",
                tail(&self.log())
            )
        })
    }

    /// Ends it as an operator does, and waits.
    #[track_caller]
    pub(crate) fn stop(mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ends(limit)
    }

    /// `supervise WORDS` as a client of this service.
    pub(crate) fn client(&self, words: &[&str]) -> Output {
        Command::new(SUPERVISE)
            .args(words)
            .arg("--socket")
            .arg(self.socket())
            .output()
            .expect("run supervise")
    }

    /// `supervise status --json`; `None` while nobody answers.
    pub(crate) fn status(&self) -> Option<Value> {
        let output = self.client(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).ok()
    }

    /// `supervise events --json`, one object a line, oldest first.
    pub(crate) fn events(&self) -> Vec<Value> {
        let output = self.client(&["events", "--json"]);
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).expect("an event is a JSON object"))
            .collect()
    }

    /// The events of one kind, oldest first.
    pub(crate) fn events_of(&self, kind: &str) -> Vec<Value> {
        let mut events = self.events();
        events.retain(|event| event["event"] == kind);
        events
    }

    /// The messages of the warnings that contain `text`, oldest first.
    pub(crate) fn warnings(&self, text: &str) -> Vec<String> {
        let warnings = self.events_of("warning").into_iter();
        let messages = warnings.filter_map(|it| it["message"].as_str().map(str::to_owned));
        messages.filter(|message| message.contains(text)).collect()
    }

    /// Waits until `count` workers are ready, and gives the status that says so.
    #[track_caller]
    pub(crate) fn ready(&self, count: usize) -> Value {
        self.wait(
            &format!("{count} ready workers"),
            Duration::from_secs(30),
            || {
                self.status().filter(|status| {
                    workers(status)
                        .iter()
                        .filter(|worker| worker["state"] == "ready")
                        .count()
                        == count
                })
            },
        )
    }

    /// `GET PATH` on the control socket: the status and the body.
    pub(crate) fn ask(&self, path: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.socket()).expect("connect to the control socket");
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("ask");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read the answer");
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("no status in {answer:?}"));
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        (status, body.to_owned())
    }

    /// What is left of it, waiting up to `limit` for it to go.
    pub(crate) fn left_after(&self, limit: Duration) -> Vec<i32> {
        clock::poll(limit, || self.everybody().is_empty().then(Vec::new))
            .unwrap_or_else(|| self.everybody())
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // A process that is already waited for is not signalled: its pid may be another's.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let left = self.left_after(GONE);
        let names: Vec<_> = left
            .iter()
            .map(|pid| format!("{pid} {}", proc::command_line(*pid)))
            .collect();
        for pid in &left {
            send(*pid, Signal::SIGKILL);
        }
        let pid = self.child.id();
        let groups = || Some(proc::groups_of(pid)).filter(Vec::is_empty);
        let groups = clock::poll(TIDY, groups).unwrap_or_else(|| proc::groups_of(pid));
        // Nobody promised anything for what is started without `supervise`.
        let is_clean = left.is_empty() && groups.is_empty();
        assert!(
            is_clean || std::thread::panicking() || !self.promised,
            "left after supervise ended: {names:#?} {groups:?}"
        );
    }
}

/// The live workers of a status.
pub(crate) fn workers(status: &Value) -> &[Value] {
    status["workers"].as_array().map_or(&[], Vec::as_slice)
}

/// The pids of the live workers of a status.
pub(crate) fn pids(status: &Value) -> Vec<i32> {
    workers(status)
        .iter()
        .filter_map(|worker| i32::try_from(worker["pid"].as_i64()?).ok())
        .collect()
}

/// How many recycles for `cause` a status counts.
pub(crate) fn recycles(status: &Value, cause: &str) -> u64 {
    status["totals"]["recycles"][cause].as_u64().unwrap_or(0)
}

/// Sends a signal; that the process is gone already is no error.
pub(crate) fn send(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// A TCP port of this machine that nobody has. Not one that the kernel would give (ip(7),
/// `ip_local_port_range`): any client may be given that before the server has it.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id() * 16 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(20_000 + number % 12_000).expect("below 32768");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn file(path: &Path) -> File {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .expect("create a file for output")
}

fn read(path: &Path) -> String {
    fs::read(path).map_or_else(
        |_| String::new(),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    )
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
