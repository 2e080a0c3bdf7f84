//! Where the command is born: in its group, before anybody could have moved it there.

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

/// A keeper says its first word sooner.
const LIMIT: Duration = Duration::from_secs(10);

/// A group below ours in the version 2 hierarchy.
struct Place(PathBuf);

impl Place {
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
        let dir = dir.join(format!("born-{}.{number}", std::process::id()));
        fs::create_dir(&dir).is_ok().then_some(Self(dir))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Its last process may still be on its way out.
        clock::poll(LIMIT, || fs::remove_dir(&self.0).ok());
    }
}

/// What a keeper says first of a command that is to be born there: that it waits, and which process
/// it is. It is told so by its command line and a socket; here the test is the supervisor, moves
/// nobody, and lets nothing be executed.
fn born(place: &Place, look: impl FnOnce(i64)) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(LIMIT)).unwrap();
    let (theirs, group) = (
        OwnedFd::from(theirs),
        OwnedFd::from(File::open(&place.0).unwrap()),
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
    // Native 64-bit numbers: what is said, and of whom.
    let mut word = [0; 32];
    let said = ours.read_exact(&mut word);
    let number = |at: usize| i64::from_ne_bytes(word[at..at + 8].try_into().unwrap());
    said.expect("the keeper says something");
    assert_eq!(number(0), 1, "{word:?}");
    look(number(8));
    drop(ours);
    keeper.wait().unwrap();
}

#[test]
fn the_command_is_born_in_its_group() {
    let _turn = turn::beside();
    let Some(place) = Place::make() else {
        println!("NOT RUN: needs a version 2 group of cgroups that is ours to divide");
        return;
    };
    born(&place, |pid| {
        let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let name = place.0.file_name().unwrap().to_str().unwrap();
        let lives = group.lines().find(|line| line.starts_with("0::")).unwrap();
        assert!(lives.ends_with(name), "{group}");
    });
}

/// Linux 6.18 kills whatever is born there.
#[test]
fn a_group_that_was_killed_once_does_not_kill_the_next_command() {
    let _turn = turn::beside();
    let Some(place) = Place::make() else {
        println!("NOT RUN: needs a version 2 group of cgroups that is ours to divide");
        return;
    };
    if fs::write(place.0.join("cgroup.kill"), "1").is_err() {
        println!("NOT RUN: needs cgroup.kill (Linux 5.14)");
        return;
    }
    born(&place, |pid| assert!(is_alive(i32::try_from(pid).unwrap())));
}
