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
    time::Duration,
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::{clock, turn};

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
        let dir = dir.join(format!("born-{}", std::process::id()));
        fs::create_dir(&dir).is_ok().then_some(Self(dir))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Its last process may still be on its way out.
        clock::poll(Duration::from_secs(10), || fs::remove_dir(&self.0).ok());
    }
}

/// The keeper is told so by its command line and a socket; here the test is the supervisor, and
/// moves nobody.
#[test]
fn the_command_is_born_in_its_group() {
    let _turn = turn::beside();
    let Some(place) = Place::make() else {
        println!("NOT RUN: needs a version 2 group of cgroups that is ours to divide");
        return;
    };
    let (mut ours, theirs) = UnixStream::pair().unwrap();
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
        .args([&place_number, "shop", "", "/bin/true", "true"])
        .spawn()
        .unwrap();
    drop((theirs, group));
    // Waiting, and its pid: native 64-bit numbers.
    let mut word = [0; 32];
    ours.read_exact(&mut word).unwrap();
    let number = |at: usize| i64::from_ne_bytes(word[at..at + 8].try_into().unwrap());
    assert_eq!(number(0), 1);
    let group = fs::read_to_string(format!("/proc/{}/cgroup", number(8))).unwrap();
    let name = place.0.file_name().unwrap().to_str().unwrap();
    let lives = group.lines().find(|line| line.starts_with("0::")).unwrap();
    assert!(lives.ends_with(name), "{group}");
    drop(ours);
    keeper.wait().unwrap();
}
