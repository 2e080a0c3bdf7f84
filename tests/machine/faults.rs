//! The machine misbehaves, and supervision goes on.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{
    client::Load,
    clock,
    house::{Plan, free_port, pids, send},
    proc, turn,
    venv::{FLASK, NEWEST, python},
};

const SOON: Duration = Duration::from_secs(20);

/// With this as its log, it does all its work.
fn works_with_its_log_on(stderr: Stdio) {
    let mut house = Plan::supervise(&[], &[python().as_str(), "spawns_helpers.py"])
        .stderr(stderr)
        .start();
    house.ready(1);
    assert!(house.client(&["recycle", "--all"]).status.success());
    house.ready(1);
    house.signal(Signal::SIGTERM);
    assert_eq!(house.ends(SOON).code(), Some(0));
}

#[test]
fn a_full_pipe_on_our_log_holds_up_nothing() {
    let _turn = turn::beside();
    let (reader, writer) = std::io::pipe().unwrap();
    fill(&writer);
    works_with_its_log_on(writer.into());
    drop(reader);
}

#[test]
fn a_full_disk_under_our_log_holds_up_nothing() {
    let _turn = turn::beside();
    // Every write to it fails with ENOSPC (full(4)).
    let full = File::options().write(true).open("/dev/full").unwrap();
    works_with_its_log_on(full.into());
}

#[test]
fn a_log_nobody_reads_any_more_holds_up_nothing() {
    let _turn = turn::beside();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    works_with_its_log_on(writer.into());
}

#[test]
fn a_start_without_a_free_process_is_tried_again() {
    let _turn = turn::beside();
    let Some(group) = Group::new() else {
        println!("no right to make a pids cgroup here: not tested");
        return;
    };
    let port = free_port();
    let options = ["--ceiling", "200M", "--restart-limit", "100"];
    let house = Plan::supervise(&options, &NEWEST.gunicorn(port, FLASK)).start();
    let old = pids(&house.ready(2));
    for pid in house.everybody() {
        group.write("cgroup.procs", &pid.to_string());
    }
    // What lives may live on, and every fork fails with EAGAIN.
    group.write("pids.max", "1");
    let master = proc::parent(old[0]).unwrap();
    send(master, Signal::SIGKILL);
    house.wait("a failed start in the ends", SOON, || {
        let status = house.status()?;
        let ends = status["ends"].as_array()?;
        ends.iter()
            .any(|end| end["cause"] == "start-failed")
            .then_some(())
    });
    group.write("pids.max", "max");
    let load = Load::on(port);
    house.wait("an answer", SOON, || load.once("/pid").ok());
    house.ready(2);
    assert_eq!(house.stop(SOON).code(), Some(0));
}

#[test]
fn whoever_may_not_become_another_user_is_told_of_the_user() {
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
fn a_worker_whose_group_cannot_be_made_serves_and_is_told_of() {
    let _turn = turn::beside();
    let port = free_port();
    let house = Plan::supervise(&["--ceiling", "200M"], &NEWEST.gunicorn(port, FLASK)).start();
    house.ready(2);
    let pid = u32::try_from(house.pid()).unwrap();
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
    let replaced = house.client(&["recycle", "--all"]);
    assert!(replaced.status.success(), "{replaced:?}");
    assert!(Load::on(port).once("/pid").is_ok());
    let status = house.ready(2);
    assert_eq!(status["caps"]["enforced"], false, "{status:#}");
    let is_told = |event: &serde_json::Value| {
        event["event"] == "warning" && event["message"].to_string().contains("a cap is not held")
    };
    assert!(house.events().iter().any(is_told));
    // The rail is there instead: RLIMIT_DATA, which was unlimited.
    let limits = fs::read_to_string(format!("/proc/{}/limits", pids(&status)[0])).unwrap();
    let data = limits
        .lines()
        .find(|line| line.starts_with("Max data size"));
    let soft = data.and_then(|line| line.split_whitespace().nth(3));
    assert!(soft.is_some_and(|soft| soft != "unlimited"), "{limits}");
    assert_eq!(house.stop(SOON).code(), Some(0));
}

/// A group of the pids controller of our own, removed at the end.
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
        // A process that ended between the listing and this is not there to be moved.
        if let Err(error) = fs::write(&path, text)
            && error.raw_os_error() != Some(nix::libc::ESRCH)
        {
            panic!("write {text} to {}: {error}", path.display());
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Busy as long as a process of it is being reaped.
        clock::poll(Duration::from_secs(3), || fs::remove_dir(&self.0).ok());
    }
}

/// Writes until not one more byte goes in.
fn fill(writer: &std::io::PipeWriter) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    for chunk in [4096, 1] {
        while nix::unistd::write(writer, &vec![b'x'; chunk]).is_ok() {}
    }
    fcntl(writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
}
