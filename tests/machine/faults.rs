//! Faults of the machine: supervision continues.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{
    client::Load,
    clock, proc,
    service::{Plan, free_port, send},
    status::pids,
    turn,
    venv::{FLASK, NEWEST, python},
};

const SOON: Duration = Duration::from_secs(20);

/// Asserts that a service works with this as its log.
fn assert_works_with_log(stderr: Stdio) {
    let mut service = Plan::supervise(&[], &[python().as_str(), "spawns_helpers.py"])
        .stderr(stderr)
        .start();
    service.ready(1);
    assert!(service.client(&["recycle", "--all"]).status.success());
    service.ready(1);
    service.signal(Signal::SIGTERM);
    assert_eq!(service.ends(SOON).code(), Some(0));
}

#[test]
fn a_full_pipe_as_log_blocks_nothing() {
    let _turn = turn::beside();
    let (reader, writer) = std::io::pipe().unwrap();
    fill(&writer);
    assert_works_with_log(writer.into());
    drop(reader);
}

#[test]
fn a_full_disk_under_the_log_blocks_nothing() {
    let _turn = turn::beside();
    // Every write to it fails with ENOSPC (full(4)).
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert_works_with_log(full.into());
}

#[test]
fn a_log_without_a_reader_blocks_nothing() {
    let _turn = turn::beside();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_works_with_log(writer.into());
}

#[test]
fn a_start_that_fails_at_the_process_limit_is_retried() {
    let _turn = turn::beside();
    let Some(group) = Group::new() else {
        println!("NOT RUN: needs the right to make a pids cgroup");
        return;
    };
    let port = free_port();
    let options = ["--ceiling", "200M", "--restart-limit", "100"];
    let service = Plan::supervise(&options, &NEWEST.gunicorn(port, FLASK)).start();
    let old = pids(&service.ready(2));
    for pid in service.processes() {
        group.write("cgroup.procs", &pid.to_string());
    }
    // Living processes stay, and every fork fails with EAGAIN.
    group.write("pids.max", "1");
    let master = proc::parent(old[0]).unwrap();
    send(master, Signal::SIGKILL);
    service.wait("a failed start in the ends", SOON, || {
        let status = service.status()?;
        let ends = status["ends"].as_array()?;
        ends.iter()
            .any(|end| end["cause"] == "start-failed")
            .then_some(())
    });
    group.write("pids.max", "max");
    let load = Load::on(port);
    service.wait("an answer", SOON, || load.once("/pid").ok());
    service.ready(2);
    assert_eq!(service.stop(SOON).code(), Some(0));
}

#[test]
fn a_start_without_permission_to_change_user_names_the_user() {
    let _turn = turn::beside();
    if !nix::unistd::geteuid().is_root() {
        println!("NOT RUN: needs root");
        return;
    }
    let options = ["--restart", "never", "--user", "nobody"];
    let plan = Plan::supervise(&options, &["/bin/true"]);
    let ended = plan
        .within(&["setpriv", "--bounding-set=-setuid"])
        .run(SOON);
    let says = "execute /bin/true as nobody: Operation not permitted";
    assert!(ended.stderr.contains(says), "{}", ended.stderr);
    assert_ne!(ended.status.code(), Some(0));
}

#[test]
fn a_worker_without_a_group_serves_and_causes_a_warning() {
    let _turn = turn::beside();
    let port = free_port();
    let service = Plan::supervise(&["--ceiling", "200M"], &NEWEST.gunicorn(port, FLASK)).start();
    service.ready(2);
    let pid = u32::try_from(service.pid()).unwrap();
    // Version 2, with the memory controller or without: mkdir(2) below it fails with EAGAIN.
    let limits = proc::groups_of(pid);
    let limits: Vec<_> = limits
        .iter()
        .map(|group| group.join("cgroup.max.descendants"))
        .filter(|limit| limit.exists())
        .collect();
    if limits.is_empty() {
        println!("NOT RUN: needs root and a cgroup2 mount that may be written to");
        return;
    }
    for limit in &limits {
        fs::write(limit, "0").unwrap();
    }
    let replaced = service.client(&["recycle", "--all"]);
    assert!(replaced.status.success(), "{replaced:?}");
    assert!(Load::on(port).once("/pid").is_ok());
    let status = service.ready(2);
    assert_eq!(status["caps"]["enforced"], false, "{status:#}");
    let is_warned = |event: &serde_json::Value| {
        event["event"] == "warning"
            && event["message"]
                .to_string()
                .contains("the cap is not enforced")
    };
    assert!(service.events().iter().any(is_warned));
    // RLIMIT_DATA, which was unlimited, limits it instead.
    let limits = fs::read_to_string(format!("/proc/{}/limits", pids(&status)[0])).unwrap();
    let data = limits
        .lines()
        .find(|line| line.starts_with("Max data size"));
    let soft = data.and_then(|line| line.split_whitespace().nth(3));
    assert!(soft.is_some_and(|soft| soft != "unlimited"), "{limits}");
    assert_eq!(service.stop(SOON).code(), Some(0));
}

/// A group of the pids controller, removed when this is dropped.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Self> {
        let name = format!("supervise-test-{}", std::process::id());
        let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
        roots.iter().find_map(|root| {
            let path = PathBuf::from(root).join(&name);
            fs::create_dir(&path).ok()?;
            let group = Self(path);
            group.0.join("pids.max").exists().then_some(group)
        })
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.0.join(file);
        // A process that has ended since the listing cannot be moved.
        if let Err(error) = fs::write(&path, text)
            && error.raw_os_error() != Some(nix::libc::ESRCH)
        {
            panic!("write {text} to {}: {error}", path.display());
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It is busy until its last process is reaped.
        clock::poll(Duration::from_secs(3), || fs::remove_dir(&self.0).ok());
    }
}

/// Writes until the pipe is full.
fn fill(writer: &std::io::PipeWriter) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    for chunk in [4096, 1] {
        while nix::unistd::write(writer, &vec![b'x'; chunk]).is_ok() {}
    }
    fcntl(writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
}
