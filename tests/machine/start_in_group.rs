//! The keeper starts the command directly in its cgroup, without moving it there afterwards.

use std::{
    fs::{self, File},
    io::Read,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::{clock, proc::is_alive, turn};

/// The time limit for the first message of a keeper.
const LIMIT: Duration = Duration::from_secs(10);

/// A group below the one of this process, in the version 2 hierarchy.
struct Group(PathBuf);

impl Group {
    fn make() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mount = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let dir = words.next()?;
            (words.next()? == "cgroup2").then_some(dir)
        });
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let dir = PathBuf::from(mount?).join(own?);
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let dir = dir.join(format!("start-{}.{number}", std::process::id()));
        fs::create_dir(&dir).is_ok().then_some(Self(dir))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its last process may not have ended yet.
        clock::poll(LIMIT, || fs::remove_dir(&self.0).ok());
    }
}

/// Starts a keeper that forks its command into this group, and passes the pid of the first message
/// to `look`. The first message says that the command waits. The test takes the place of the
/// supervisor, moves no process, and does not let the command be executed.
fn with_waiting_command(group_dir: &Group, look: impl FnOnce(i64)) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(LIMIT)).unwrap();
    let (theirs, group) = (
        OwnedFd::from(theirs),
        OwnedFd::from(File::open(&group_dir.0).unwrap()),
    );
    for passed in [&theirs, &group] {
        fcntl(passed, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    }
    let number = |fd: &OwnedFd| fd.as_raw_fd().to_string();
    let (theirs_number, place_number) = (number(&theirs), number(&group));
    let own = std::process::id().to_string();
    let mut keeper = Command::new(env!("CARGO_BIN_EXE_supervise"))
        .args(["__keep", &theirs_number, &own, "background", ""])
        .args([&place_number, "", "", "/bin/true", "true"])
        .spawn()
        .unwrap();
    drop((theirs, group));
    // Native 64-bit numbers: the kind of the message, and the pid.
    let mut message = [0; 32];
    let result = ours.read_exact(&mut message);
    let number = |at: usize| i64::from_ne_bytes(message[at..at + 8].try_into().unwrap());
    result.expect("the keeper sends a message");
    assert_eq!(number(0), 1, "{message:?}");
    look(number(8));
    drop(ours);
    keeper.wait().unwrap();
}

#[test]
fn the_command_starts_in_its_group() {
    let _turn = turn::beside();
    let Some(group_dir) = Group::make() else {
        println!("NOT RUN: needs a version 2 group of cgroups that is ours to divide");
        return;
    };
    with_waiting_command(&group_dir, |pid| {
        let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let name = group_dir.0.file_name().unwrap().to_str().unwrap();
        let lives = group.lines().find(|line| line.starts_with("0::")).unwrap();
        assert!(lives.ends_with(name), "{group}");
    });
}

/// Linux 6.18 kills processes that are forked into a group that was killed before.
#[test]
fn a_group_killed_once_does_not_kill_the_next_command() {
    let _turn = turn::beside();
    let Some(group_dir) = Group::make() else {
        println!("NOT RUN: needs a version 2 group of cgroups that is ours to divide");
        return;
    };
    if fs::write(group_dir.0.join("cgroup.kill"), "1").is_err() {
        println!("NOT RUN: needs cgroup.kill (Linux 5.14)");
        return;
    }
    with_waiting_command(&group_dir, |pid| {
        assert!(is_alive(i32::try_from(pid).unwrap()))
    });
}
