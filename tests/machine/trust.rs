//! Directories and files that other users of the machine have prepared, and services with the same
//! name.
#![expect(
    clippy::print_stdout,
    reason = "a test prints what it cannot test here"
)]

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, chown, lchown, symlink},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use nix::unistd::geteuid;
use tempfile::TempDir;

use super::{
    service::{Plan, SUPERVISE, Service},
    turn,
};

const SOON: Duration = Duration::from_secs(20);
/// User ids that no process and no file of the machine has.
const VICTIM: u32 = 64_123;
const OTHER: u32 = 64_124;

/// A directory that all users may enter, with the binary in it.
struct Machine(TempDir);

impl Machine {
    /// `None`, with a message, if this is not root: only root can run as other users.
    fn with_users() -> Option<Self> {
        if !geteuid().is_root() {
            println!("NOT RUN: needs root to run as other users");
            return None;
        }
        let directory = TempDir::new().unwrap();
        mode(directory.path(), 0o755);
        // Copied by another process: a child of another test could inherit the descriptor open for
        // writing, and then executing the file would fail.
        let copied = Command::new("install")
            .args(["-m", "755", SUPERVISE])
            .arg(directory.path())
            .status();
        assert!(copied.unwrap().success());
        Some(Self(directory))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn directory(&self, name: &str, owner: u32, bits: u32) -> PathBuf {
        directory(&self.at(name), owner, bits)
    }

    /// A file of the victim that must not change.
    fn precious(&self) -> PathBuf {
        let path = self.at("precious");
        fs::write(&path, "precious").unwrap();
        chown(&path, Some(VICTIM), Some(VICTIM)).unwrap();
        path
    }

    /// Runs a job of the victim that prints `started`, with its socket at this path.
    fn echo_at(&self, socket: &Path) -> Output {
        let socket = socket.display().to_string();
        let mut words = vec!["--socket", &socket, "--restart", "never"];
        words.extend(["--", "echo", "started"]);
        self.run(VICTIM, &words, &[])
    }

    fn run(&self, user: u32, words: &[&str], env: &[(&str, &Path)]) -> Output {
        let mut command = Command::new(self.at("supervise"));
        command.args(words).env_clear().env("PATH", "/usr/bin:/bin");
        command.envs(env.iter().copied()).current_dir("/");
        if user != 0 {
            command.uid(user).gid(user);
        }
        command.output().unwrap()
    }
}

fn directory(path: &Path, owner: u32, bits: u32) -> PathBuf {
    fs::create_dir(path).unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
    mode(path, bits);
    path.to_owned()
}

fn mode(path: &Path, bits: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
}

fn link(to: &Path, at: &Path, owner: u32) {
    symlink(to, at).unwrap();
    lchown(at, Some(owner), Some(owner)).unwrap();
}

fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A directory that is removed when this is dropped, because its path is the same in each run.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_runtime_directory_that_another_user_made_first_is_not_used() {
    let Some(machine) = Machine::with_users() else {
        return;
    };
    let precious = machine.precious();
    let job = ["--name", "shop", "--restart", "never", "--", "true"];
    let name = format!("supervise-{VICTIM}");
    let places = ["/tmp", "/dev/shm"].map(|shared| Removed(Path::new(shared).join(&name)));
    let prepared = directory(&places[0].0, OTHER, 0o777);
    link(&precious, &prepared.join("shop.lock"), OTHER);
    let output = machine.run(VICTIM, &job, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr_of(&output));
    assert!(stderr_of(&output).contains("belongs to uid 64124 with mode 0777"));
    assert!(places[1].0.join("shop.lock").exists());

    fs::remove_dir_all(&places[1].0).unwrap();
    directory(&places[1].0, OTHER, 0o700);
    let output = machine.run(VICTIM, &job, &[]);
    let stderr = stderr_of(&output);
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    for place in &places {
        assert!(stderr.contains(&place.0.display().to_string()), "{stderr}");
    }
    assert!(stderr.contains("XDG_RUNTIME_DIR"), "{stderr}");
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert_eq!(fs::read_dir(&prepared).unwrap().count(), 1);
    // A client does not use a socket there.
    let output = machine.run(VICTIM, &["status", "--name", "shop"], &[]);
    assert!(
        stderr_of(&output).contains("belongs to uid 64124"),
        "{}",
        stderr_of(&output)
    );
}

#[test]
fn root_uses_no_runtime_or_state_directory_of_another_user() {
    let Some(machine) = Machine::with_users() else {
        return;
    };
    let precious = machine.precious();
    let theirs = machine.directory("theirs", OTHER, 0o700);
    let inside = machine.directory("theirs/supervise", OTHER, 0o700);
    let name = format!("trust-{}", std::process::id());
    link(&precious, &inside.join(format!("{name}.lock")), OTHER);
    let job = ["--name", &name, "--restart", "never", "--", "true"];
    let output = machine.run(0, &job, &[("XDG_RUNTIME_DIR", &theirs)]);
    let lock = Path::new("/run/supervise").join(format!("{name}.lock"));
    assert_eq!(output.status.code(), Some(0), "{}", stderr_of(&output));
    assert!(lock.exists() && stderr_of(&output).contains("/run/supervise is used instead"));
    fs::remove_file(lock).unwrap();
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert_eq!(fs::read_dir(&inside).unwrap().count(), 1);
}

#[test]
fn a_socket_path_that_other_users_can_change_is_refused_before_anything_starts() {
    let _turn = turn::beside();
    let Some(machine) = Machine::with_users() else {
        return;
    };
    let precious = machine.precious();
    machine.directory("open", VICTIM, 0o777);
    machine.directory("theirs", OTHER, 0o755);
    let sticky = machine.directory("sticky", 0, 0o1777);
    link(&precious, &sticky.join("link.lock"), OTHER);
    link(&machine.at("theirs"), &sticky.join("way"), OTHER);
    fs::hard_link(&precious, sticky.join("hard.lock")).unwrap();
    fs::write(sticky.join("file.lock"), "").unwrap();
    chown(sticky.join("file.lock"), Some(OTHER), Some(OTHER)).unwrap();
    mode(&sticky.join("file.lock"), 0o666);
    fs::create_dir(sticky.join("directory.lock")).unwrap();
    for (socket, reason) in [
        ("open/a.sock", "other users can replace its entries"),
        ("theirs/a.sock", "belongs to uid 64124"),
        ("sticky/link.sock", "symbolic link"),
        ("sticky/way/a.sock", "symbolic link"),
        ("sticky/hard.sock", "hard link"),
        ("sticky/file.sock", "belongs to uid 64124"),
        ("sticky/directory.sock", "not a regular file"),
    ] {
        let output = machine.echo_at(&machine.at(socket));
        let stderr = stderr_of(&output);
        assert_eq!(output.status.code(), Some(125), "{socket}: {stderr}");
        assert!(
            stderr.contains(reason) && stderr.contains("--socket"),
            "{socket}: {stderr}"
        );
        assert!(output.stdout.is_empty(), "{socket}");
    }
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    let output = machine.echo_at(&sticky.join("good.sock"));
    assert_eq!(output.stdout, b"started\n", "{}", stderr_of(&output));
}

#[test]
fn a_journal_or_termination_log_of_another_user_is_refused() {
    let Some(machine) = Machine::with_users() else {
        return;
    };
    let precious = machine.precious();
    let open = machine.directory("open", 0, 0o777);
    link(&precious, &open.join("link"), OTHER);
    fs::write(open.join("file"), "").unwrap();
    chown(open.join("file"), Some(OTHER), Some(OTHER)).unwrap();
    mode(&open.join("file"), 0o666);
    // Other tests make the usual runtime directories of this user unusable.
    let run = machine.directory("run", VICTIM, 0o700);
    let socket = run.join("a.sock").display().to_string();
    let run = [("XDG_RUNTIME_DIR", run.as_path())];
    for name in ["link", "file"] {
        let path = open.join(name).display().to_string();
        let log = [
            "--socket",
            &socket,
            "--termination-log",
            &path,
            "--",
            "true",
        ];
        for words in [&["map", "a:b", "--journal", &path][..], &log] {
            let output = machine.run(VICTIM, words, &run);
            let stderr = stderr_of(&output);
            assert_eq!(output.status.code(), Some(125), "{stderr}");
            assert!(stderr.contains("belongs to uid 64124"), "{stderr}");
        }
    }
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert_eq!(fs::read(open.join("file")).unwrap(), b"");
}

/// Starts a service that prints the directory of its agent, its user and its home.
fn start_service(name: &str, options: &[&str]) -> Service {
    let script =
        "echo agent=$SUPERVISE_AGENT home=$HOME user=$USER logname=$LOGNAME.; exec sleep 99";
    let options = [&["--name", name, "--ready", "delay:10ms"], options].concat();
    let service = Plan::supervise(&options, &["sh", "-c", script])
        .env("USER", "root")
        .start();
    service.wait_for_output(".\n", SOON);
    service
}

#[test]
fn services_of_the_same_name_have_their_own_agent_directory_and_home() {
    if !geteuid().is_root() {
        println!("NOT RUN: needs root to run as other users");
        return;
    }
    let name = format!("trust-user-{}", std::process::id());
    let agent = Path::new("/run/supervise-agent").join(&name);
    let first = start_service(&name, &["--user", "nobody"]);
    let page = fs::metadata(agent.join("page")).unwrap();
    let second = start_service(&name, &["--user", "nobody", "--env", "HOME=/given"]);
    let agent = agent.display();
    let rest = "user=nobody logname=nobody.\n";
    assert_eq!(
        first.stdout(),
        format!("agent={agent} home=/nonexistent {rest}")
    );
    assert_eq!(
        second.stdout(),
        format!("agent={agent}.2 home=/given {rest}")
    );
    second.stop(SOON);
    use std::os::unix::fs::MetadataExt as _;
    let now = fs::metadata(format!("{agent}/page")).unwrap();
    assert_eq!(now.ino(), page.ino());
    first.stop(SOON);
    for left in ["", ".2"] {
        assert!(!Path::new(&format!("{agent}{left}")).exists());
    }
}

#[test]
fn services_of_the_same_name_in_other_pid_namespaces_do_not_affect_each_other() {
    let _turn = turn::beside();
    if !geteuid().is_root() {
        println!("NOT RUN: needs root to make a PID namespace");
        return;
    }
    let name = format!("trust-pid-{}", std::process::id());
    let away = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    for (first, second) in [(&[][..], &away[..]), (&away, &[]), (&away, &away)] {
        let plan = |within: &[&str], script: &str| {
            let options = [
                "--name",
                &name,
                "--ready",
                "delay:10ms",
                "--restart",
                "never",
            ];
            Plan::supervise(&options, &["sh", "-c", script]).within(within)
        };
        let lives = plan(first, "echo started.; exec sleep 99").start();
        lives.wait_for_output("started", SOON);
        let ended = plan(second, "echo done").run(SOON);
        assert_eq!(ended.stdout, "done\n", "{}", ended.stderr);
        let status = lives.status().expect("it answers");
        assert_eq!(status["ends"].as_array().map(Vec::len), Some(0), "{status}");
        let stopped = lives.client(&["stop"]);
        assert!(stopped.status.success(), "{stopped:?}");
    }
}
