//! Real groups on this machine, with the version that has its memory controller.
//!
//! Needs root, or a delegated group; without it each test prints `NOT RUN` and the reason.

use std::{
    io::{BufRead, BufReader, Write},
    os::{fd::BorrowedFd, unix::process::ExitStatusExt},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use nix::{
    poll::{PollTimeout, poll},
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout},
};

use super::*;
use crate::{
    host::memory::procfs::Proc,
    supervisor::input::{CapMechanism, Oom},
    units::Bytes,
};

/// Time limit of operations that take milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(60);

/// For each line, grows by that many mebibytes and answers.
const GROWS: &str = "
import sys
kept = []
print('up', flush=True)
for line in sys.stdin:
    kept.append(bytearray(b'x') * (int(line) << 20))
    print('grown', flush=True)
";

/// Reads a path, and fills the page cache with 60 MiB of that file.
const WRITES: &str = "
import os, sys
print('up', flush=True)
out = os.open(sys.stdin.readline().strip(), os.O_WRONLY | os.O_CREAT)
for _ in range(60): os.write(out, b'x' * (1 << 20))
os.fsync(out); print('written', flush=True); sys.stdin.readline()
";

/// A child forks a grandchild that leaves its session, and ends; the two others sleep.
const FORKS_AWAY: &str = "
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(600)
    os._exit(0)
os.wait()
time.sleep(600)
";

/// The groups of one service, removed at the end.
struct House {
    groups: Groups,
    /// In version 2 our own process moves, so only one test runs at a time.
    _alone: MutexGuard<'static, ()>,
}

impl House {
    fn new(name: &str) -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock();
        let _alone = alone.unwrap_or_else(|poisoned| poisoned.into_inner());
        let found = Found::discover(&Proc::default()).unwrap();
        let groups = Groups::create(&found, name, us());
        if let Some(obstacle) = groups.obstacle() {
            eprintln!("NOT RUN: needs a writable memory controller: {obstacle}");
            return None;
        }
        Some(Self { groups, _alone })
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.groups.kill_all().unwrap();
        wait_until("all are gone", || self.groups.is_empty());
        let left = self.groups.remove_all();
        assert!(left.is_empty() || std::thread::panicking(), "{left:?} stay");
    }
}

/// A program that is in a group from its first instruction.
struct Program {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start(code: &str, group: &Group) -> Self {
        let files: Vec<String> = group
            .procs_files()
            .iter()
            .map(|file| format!("echo 0 > {} && ", file.display()))
            .collect();
        let mut child = Command::new("sh")
            .args(["-c", &format!("{} exec python3 -c \"$0\"", files.concat())])
            .arg(code)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut program = Self {
            child,
            input,
            output,
        };
        assert_ne!(program.line(), "", "the program did not start");
        program
    }

    /// Its next line; empty when it has ended.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    /// False if the growth has ended it.
    fn grow(&mut self, mebibytes: u32) -> bool {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{mebibytes}").is_ok() && self.line() == "grown\n"
    }

    fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    fn is_killed(&mut self) -> bool {
        self.child.wait().unwrap().signal() == Some(9)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn count(group: &Group) -> usize {
    let mut pids = Vec::new();
    group.pids(&mut pids).unwrap();
    pids.len()
}

fn us() -> i32 {
    std::process::id().try_into().unwrap()
}

/// Whether the descriptor of the threshold becomes ready within that time. Waits like the driver.
fn is_crossed(group: &Group, within: Duration) -> bool {
    is_ready(group, group.threshold_fd().unwrap(), within)
}

fn is_ready(group: &Group, fd: BorrowedFd<'_>, within: Duration) -> bool {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    epoll.add(fd, EpollEvent::new(group.interest(), 0)).unwrap();
    let timeout = EpollTimeout::try_from(within).unwrap();
    epoll.wait(&mut [EpollEvent::empty()], timeout).unwrap() > 0
}

/// Waits until a condition holds. The pause between two checks is an empty poll(2).
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..SOON.as_millis() / 5 {
        if is_so() {
            return;
        }
        poll(&mut [], PollTimeout::from(5_u8)).unwrap();
    }
    panic!("{what}: not within {SOON:?}");
}

#[test]
fn a_program_that_outgrows_its_cap_ends_with_the_cause_cap() {
    let Some(house) = House::new("t-cap") else {
        return;
    };
    let mut group = house.groups.leaf("w1").unwrap();
    group
        .set_cap(Some(Bytes::mib(64)), Some(Bytes::ZERO))
        .unwrap();
    let mut program = Program::start(GROWS, &group);
    assert!(program.grow(20));
    assert_eq!(house.groups.oom(&mut group), Oom::No);
    assert!(!program.grow(256));
    assert!(program.is_killed());
    assert!(is_ready(&group, group.oom_fd().unwrap(), SOON));
    assert_eq!(house.groups.oom(&mut group), Oom::Cap);
    assert_eq!(house.groups.oom(&mut group), Oom::No);
    let peak = group.peak().unwrap();
    assert!(peak > Bytes::mib(62) && peak <= Bytes::mib(64), "{peak}");
}

#[test]
fn a_kill_by_a_signal_is_not_an_oom() {
    let Some(house) = House::new("t-signal") else {
        return;
    };
    let mut group = house.groups.leaf("w1").unwrap();
    group
        .set_cap(Some(Bytes::mib(64)), Some(Bytes::ZERO))
        .unwrap();
    let mut program = Program::start(GROWS, &group);
    program.child.kill().unwrap();
    assert!(program.is_killed());
    assert_eq!(house.groups.oom(&mut group), Oom::No);
}

#[test]
fn the_budget_kills_one_worker_with_the_cause_budget_and_spares_the_other() {
    let Some(mut house) = House::new("t-budget") else {
        return;
    };
    house.groups.set_budget(Some(Bytes::mib(96))).unwrap();
    let mut large = house.groups.leaf("w1").unwrap();
    let mut other = house.groups.leaf("w2").unwrap();
    for group in [&mut large, &mut other] {
        group
            .set_cap(Some(Bytes::mib(90)), Some(Bytes::ZERO))
            .unwrap();
    }
    let mut stays = Program::start(GROWS, &other);
    assert!(stays.grow(20));
    let mut goes = Program::start(GROWS, &large);
    while goes.grow(10) {}
    assert!(goes.is_killed());
    assert_eq!(house.groups.oom(&mut large), Oom::Budget);
    assert_eq!(house.groups.oom(&mut other), Oom::No);

    // An earlier kill by the budget is not counted when the other worker reaches its own cap.
    other
        .set_cap(Some(Bytes::mib(48)), Some(Bytes::ZERO))
        .unwrap();
    assert!(!stays.grow(64));
    assert!(stays.is_killed());
    assert_eq!(house.groups.oom(&mut other), Oom::Cap);
}

#[test]
fn a_threshold_is_crossed_after_the_configured_growth_and_not_before() {
    let Some(house) = House::new("t-threshold") else {
        return;
    };
    let mut group = house.groups.leaf("w1").unwrap();
    let mut program = Program::start(GROWS, &group);
    for _ in 0..2 {
        group.set_threshold(Bytes::mib(20)).unwrap();
        assert!(program.grow(15));
        assert!(!is_crossed(&group, Duration::ZERO) && !group.take_threshold());
        assert!(program.grow(8));
        assert!(is_crossed(&group, SOON) && group.take_threshold());
        assert!(group.threshold_fd().is_none() && !group.take_threshold());
    }
}

#[test]
fn the_end_of_a_group_does_not_cross_its_threshold() {
    let Some(house) = House::new("t-end") else {
        return;
    };
    let mut group = house.groups.leaf("w1").unwrap();
    group.set_threshold(Bytes::mib(20)).unwrap();
    group.remove().unwrap();
    assert!(is_crossed(&group, SOON) && !group.take_threshold());
    assert_eq!(house.groups.oom(&mut group), Oom::No);
}

#[test]
fn killing_a_group_kills_a_grandchild_that_left_its_session() {
    let Some(house) = House::new("t-kill") else {
        return;
    };
    let group = house.groups.leaf("w1").unwrap();
    let mut program = Program::start(FORKS_AWAY, &group);
    wait_until("the middle process has ended", || count(&group) == 2);
    let mut pids = Vec::new();
    group.pids(&mut pids).unwrap();
    assert!(pids.contains(&program.pid()));
    assert!(!group.is_empty());
    group.remove().unwrap_err();

    group.kill().unwrap();
    assert!(program.is_killed());
    wait_until("the grandchild is gone", || group.is_empty());
    wait_until("it can be removed", || group.remove().is_ok());
}

#[test]
fn a_tree_is_killed_without_cgroup_kill_as_well() {
    let Some(mut house) = House::new("t-loop") else {
        return;
    };
    let all = house.groups.folders.clone();
    (house.groups.folders).retain(|folder| folder.version == Version::V1);
    if house.groups.folders.is_empty() {
        eprintln!("NOT RUN: needs a version 1 hierarchy");
        return;
    }
    let group = house.groups.leaf("w1").unwrap();
    let mut program = Program::start(FORKS_AWAY, &group);
    wait_until("the middle process has ended", || count(&group) == 2);
    group.kill().unwrap();
    assert!(program.is_killed());
    wait_until("the grandchild is gone", || group.is_empty());
    group.remove().unwrap();
    house.groups.folders = all;
}

#[test]
fn new_memory_of_a_moved_process_is_charged_to_its_new_group() {
    let Some(house) = House::new("t-move") else {
        return;
    };
    let server = house.groups.leaf("server").unwrap();
    let mut group = house.groups.leaf("w1").unwrap();
    let mut program = Program::start(GROWS, &server);
    assert!(program.grow(30));
    group.add(program.pid()).unwrap();
    assert!(server.is_empty());
    let before = group.usage().unwrap();
    assert!(before < Bytes::mib(5), "{before} moved with the process");
    assert!(program.grow(30));
    let usage = group.usage().unwrap();
    assert!(usage > Bytes::mib(28) && usage < Bytes::mib(40), "{usage}");
    let (anon, _) = group.charged().unwrap();
    assert!(anon > Bytes::mib(28) && anon <= usage, "{anon} of {usage}");
    let error = group.add(i32::MAX).unwrap_err();
    assert!(error.is_gone(), "{error}");
}

#[test]
fn a_cap_is_raised_lowered_and_removed() {
    let Some(house) = House::new("t-caps") else {
        return;
    };
    let mut group = house.groups.leaf("w1").unwrap();
    for mebibytes in [64, 128, 32, 256] {
        let cap = Some(Bytes::mib(mebibytes));
        for swap in [Some(Bytes::ZERO), None, Some(Bytes::mib(1))] {
            group.set_cap(cap, swap).unwrap();
        }
    }
    group.set_cap(None, None).unwrap();
    let mut program = Program::start(GROWS, &group);
    assert!(program.grow(100));
}

#[test]
fn a_limit_stays_above_the_memory_of_a_group_but_not_above_its_page_cache() {
    let Some(house) = House::new("t-reach") else {
        return;
    };
    let mut group = house.groups.leaf("w1").unwrap();
    let mut program = Program::start(GROWS, &group);
    assert!(program.grow(60));
    let wanted = Some(Bytes::mib(30));
    let limit = group.set_cap(wanted, Some(Bytes::ZERO)).unwrap().unwrap();
    assert!(limit > Bytes::mib(60) && limit < Bytes::mib(80), "{limit}");
    assert!(!program.grow(40) && program.is_killed());
    let mut reader = house.groups.leaf("w2").unwrap();
    let folder = tempfile::tempdir_in("/var/tmp").unwrap(); // `/tmp` may be memory
    let mut program = Program::start(WRITES, &reader);
    let path = folder.path().join("cached");
    writeln!(program.input.as_mut().unwrap(), "{}", path.display()).unwrap();
    assert_eq!(program.line(), "written\n");
    let (charge, held) = (reader.usage().unwrap(), reader.held().unwrap());
    assert!(charge > Bytes::mib(60) && held < Bytes::mib(20), "{held}");
    assert_eq!(reader.set_cap(wanted, Some(Bytes::ZERO)).unwrap(), wanted);
}

#[test]
fn groups_of_a_killed_supervisor_are_killed_and_removed() {
    let Some(house) = House::new("t-live") else {
        return;
    };
    let proc = Proc::default();
    let found = Found::discover(&proc).unwrap();
    // The name has the pid of a process that has ended.
    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    let service = house.groups.dirs().next().unwrap();
    let stale = service.with_file_name(format!("supervise-t-stale.{}", ended.id()));
    let dir = stale.join("w1");
    files::make(&stale).unwrap();
    files::make(&dir).unwrap();
    let group = Group {
        name: "w1".to_owned(),
        folders: vec![group::Folder::new(Version::V1, dir)],
        memory: None,
        seen: oom::Counts::default(),
    };
    let mut program = Program::start(FORKS_AWAY, &group);
    let remove = |name, pid| remove_stale(&found, &proc, name, pid);
    wait_until("nothing is left", || remove("t-stale", us()).is_empty());
    assert!(program.is_killed());
    assert!(!stale.exists());
    // The groups of a running service are not touched.
    assert!(remove("t-live", us() + 1).is_empty());
    assert!(service.exists());
}

#[test]
fn the_trial_finds_the_features_of_this_machine() {
    let Some(house) = House::new("t-trial") else {
        return;
    };
    let trial = house.groups.trial();
    assert!(trial.cap && trial.budget && trial.threshold, "{trial:?}");
    assert_ne!(house.groups.caps(), CapMechanism::Rlimit);
}

#[test]
fn available_memory_is_more_than_nothing_and_no_more_than_the_machine_has() {
    let proc = Proc::default();
    let found = Found::discover(&proc).unwrap();
    let available = found.available(&proc).unwrap();
    assert!(available > Bytes::mib(1) && available <= proc.mem_total().unwrap());
}

/// Writes and reads more than its cap allows to cache.
const THRASHES: &str = "
import os, tempfile
print('up', flush=True)
kept = bytearray(b'x') * (16 << 20)
with tempfile.TemporaryFile(dir='.') as file:
    while True:
        file.seek(0)
        for _ in range(96):
            file.write(kept[:1 << 20])
        os.fsync(file.fileno())
        file.seek(0)
        while file.read(1 << 20):
            pass
";

#[test]
fn memory_pressure_on_a_group_is_reported() {
    let Some(house) = House::new("pressed") else {
        return;
    };
    let Some(pressure) = house.groups.watch_pressure() else {
        eprintln!("NOT RUN: needs pressure reports for groups (CONFIG_PSI, cgroup v2)");
        return;
    };
    let mut group = house.groups.leaf("w1").unwrap();
    group
        .set_cap(Some(Bytes::mib(32)), Some(Bytes::ZERO))
        .unwrap();
    let mut program = Program::start(THRASHES, &group);
    let mut waits = [nix::poll::PollFd::new(
        std::os::fd::AsFd::as_fd(&pressure),
        nix::poll::PollFlags::POLLPRI,
    )];
    let limit = PollTimeout::try_from(SOON).unwrap();
    assert_eq!(poll(&mut waits, limit).unwrap(), 1, "no pressure reported");
    program.child.kill().unwrap();
    program.child.wait().unwrap();
}

#[test]
fn shared_memory_is_held_and_page_cache_is_not() {
    let Some(house) = House::new("held") else {
        return;
    };
    let group = house.groups.leaf("w1").unwrap();
    let code = "
import mmap, os, sys, tempfile
some = b'x' * (1 << 20)
shared = mmap.mmap(-1, 40 << 20)
for _ in range(40):
    shared.write(some)
file = tempfile.TemporaryFile(dir='.')
for _ in range(60):
    file.write(some)
file.flush()
print('up', flush=True)
sys.stdin.read()
";
    let mut program = Program::start(code, &group);
    // The kernel updates its statistics with a delay.
    wait_until("only the shared memory counts as held", || {
        let held = house.groups.held().unwrap();
        held >= Bytes::mib(40) && held < Bytes::mib(90)
    });
    drop(program.input.take());
    program.child.wait().unwrap();
}
