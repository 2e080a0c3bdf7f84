//! A program under test with its processes: `supervise`, or a bare server for comparison.
//!
//! All its processes have a tag in their environment. When the service is dropped, no process with
//! that tag may be left, daemons included. Otherwise the test fails.

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

use super::{clock, proc, status::workers, venv};

/// All processes must end within this time after `supervise`.
const GONE: Duration = Duration::from_secs(2);

/// Its groups must be removed within this time. The kernel refuses to remove a group for a moment
/// after the end of the last process.
const TIDY: Duration = Duration::from_secs(10);

/// The program under test.
pub(crate) const SUPERVISE: &str = env!("CARGO_BIN_EXE_supervise");

/// How to start a service.
#[derive(Debug)]
pub(crate) struct Plan {
    supervise: Option<Vec<String>>,
    binary: PathBuf,
    words: Vec<String>,
    within: Vec<String>,
    env: Vec<(String, String)>,
    config: Option<String>,
    stderr: Option<Stdio>,
    socket: Option<OwnedFd>,
}

impl Plan {
    /// `supervise OPTIONS -- COMMAND`, with its control socket in a temporary directory.
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
            socket: None,
        }
    }

    /// Passes this socket as systemd does (sd_listen_fds(3)).
    pub(crate) fn with_socket(mut self, socket: impl Into<OwnedFd>) -> Self {
        self.socket = Some(socket.into());
        self
    }

    /// With this variable in the environment.
    pub(crate) fn env(mut self, key: &str, value: impl ToString) -> Self {
        self.env.push((key.to_owned(), value.to_string()));
        self
    }

    /// Started by these words, which execute the words that follow them.
    pub(crate) fn within(mut self, words: &[&str]) -> Self {
        self.within = words.iter().map(ToString::to_string).collect();
        self
    }

    /// With this configuration file.
    pub(crate) fn config(mut self, text: &str) -> Self {
        self.config = Some(text.to_owned());
        self
    }

    /// With `supervise` at this path.
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
    pub(crate) fn start(self) -> Service {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let tag = format!("TEST_SERVICE={}-{number}", std::process::id());
        let dir = TempDir::new().expect("make a temporary directory");
        let mut command = self.command(dir.path());
        if self.socket.is_some() {
            command = activated(&command);
        }
        let (key, value) = tag.split_once('=').expect("written above");
        command.env(key, value).envs(self.env);
        command
            .stdin(self.socket.map_or_else(Stdio::null, Stdio::from))
            .stdout(file(&dir.path().join("stdout")))
            .stderr(
                self.stderr
                    .unwrap_or_else(|| file(&dir.path().join("stderr")).into()),
            );
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        Service {
            child,
            dir,
            tag,
            is_supervised: self.supervise.is_some(),
        }
    }

    /// Runs it to its end.
    pub(crate) fn run(self, limit: Duration) -> Ended {
        let mut service = self.start();
        let status = service.ends(limit);
        Ended {
            status,
            stdout: service.stdout(),
            stderr: service.log(),
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
            // Newer versions of gunicorn put their own control socket there.
            .env("XDG_RUNTIME_DIR", dir)
            // Reports are kept there.
            .env("STATE_DIRECTORY", dir)
            .env("HOME", dir);
        command
    }
}

/// Executes `command` with its stdin as descriptor 3 and the variables of socket activation.
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

/// The result of a program that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    pub stdout: String,
    /// The standard error of the program and of `supervise`.
    pub stderr: String,
}

/// A started program.
#[derive(Debug)]
pub(crate) struct Service {
    child: Child,
    dir: TempDir,
    tag: String,
    /// It runs under `supervise`, which must leave no process behind.
    is_supervised: bool,
}

impl Service {
    /// The pid of the started process.
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

    /// The text of a file in the directory of its socket.
    pub(crate) fn file(&self, name: &str) -> String {
        read(&self.dir.path().join(name))
    }

    /// Its stderr so far.
    pub(crate) fn log(&self) -> String {
        read(&self.dir.path().join("stderr"))
    }

    /// Its stdout so far.
    pub(crate) fn stdout(&self) -> String {
        read(&self.dir.path().join("stdout"))
    }

    /// The pids of all its live descendants.
    pub(crate) fn processes(&self) -> Vec<i32> {
        proc::tagged(&self.tag)
    }

    /// Sends `signal` to the process that was started.
    pub(crate) fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// Waits until `look` returns a value. After `limit` the test fails, and shows the log.
    #[track_caller]
    pub(crate) fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        look: impl FnMut() -> Option<T>,
    ) -> T {
        clock::poll(limit, look).unwrap_or_else(|| {
            panic!(
                "not within {limit:?}: {what}\n--- processes\n{}\n--- log\n{}",
                self.what_processes_do(),
                tail(&self.log())
            )
        })
    }

    /// The status of all its live descendants, and where they wait in the kernel.
    fn what_processes_do(&self) -> String {
        let describe = |pid| {
            let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
            format!(
                "{}in {}, syscall {}",
                read("status"),
                read("wchan"),
                read("syscall")
            )
        };
        let all: Vec<String> = self.processes().into_iter().map(describe).collect();
        all.join("\n")
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

    /// Stops it with SIGTERM and waits.
    #[track_caller]
    pub(crate) fn stop(mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ends(limit)
    }

    /// Runs `supervise WORDS` as a client of this service.
    pub(crate) fn client(&self, words: &[&str]) -> Output {
        Command::new(SUPERVISE)
            .args(words)
            .arg("--socket")
            .arg(self.socket())
            .output()
            .expect("run supervise")
    }

    /// `supervise status --json`. `None` while there is no answer.
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

    /// Waits until `count` workers are ready, and returns that status.
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

    /// Sends `GET PATH` to the control socket. Returns the status and the body.
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

    /// The processes that are left after at most `limit`.
    pub(crate) fn left_after(&self, limit: Duration) -> Vec<i32> {
        clock::poll(limit, || self.processes().is_empty().then(Vec::new))
            .unwrap_or_else(|| self.processes())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // `kill` does not signal a process that was waited for: its pid may be in use again.
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
        // A bare server may leave processes behind.
        let is_clean = left.is_empty() && groups.is_empty();
        assert!(
            is_clean || std::thread::panicking() || !self.is_supervised,
            "left after supervise ended: {names:#?} {groups:?}"
        );
    }
}

/// How many recycles for `cause` a status counts.
pub(crate) fn recycles(status: &Value, cause: &str) -> u64 {
    status["totals"]["recycles"][cause].as_u64().unwrap_or(0)
}

/// Sends a signal. It is not an error if the process has ended.
pub(crate) fn send(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// A free TCP port. It is outside the range of ephemeral ports (ip(7), `ip_local_port_range`),
/// since the kernel may give those to a client before the server binds.
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
