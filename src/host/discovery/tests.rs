//! Searches in process trees that a test has written.

use std::{fs, os::unix::fs::symlink, path::Path};

use super::{Finding, Search, server_below};
use crate::{
    host::memory::procfs::Proc,
    servers::{gunicorn, taskiq, uwsgi},
    units::{Signal, Timestamp},
};

const STACK: u64 = 140_000;

/// A `/proc` that a test fills.
struct Tree {
    root: tempfile::TempDir,
    files: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        let dir = || tempfile::tempdir().unwrap();
        let (root, files) = (dir(), dir());
        Self { root, files }
    }

    fn proc(&self) -> Proc {
        Proc::at(self.root.path())
    }

    /// A process with its command line, its parent, its stack and the heartbeat files it holds.
    fn add(&self, pid: i32, cmdline: &str, (ppid, stack): (i32, u64), holds: &[&str]) {
        let dir = self.root.path().join(pid.to_string());
        fs::create_dir_all(dir.join("fd")).unwrap();
        self.children(pid, &[]);
        fs::write(dir.join("cmdline"), cmdline.replace(' ', "\0") + "\0").unwrap();
        let fields = format!(
            "{pid} (python) S {ppid} 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid} 0 0 0 0 0 {stack} 0"
        );
        fs::write(dir.join("stat"), fields).unwrap();
        for (number, name) in (5..).zip(holds) {
            let file = self.files.path().join(format!("wgunicorn-{name}"));
            if !Path::exists(&file) {
                fs::write(&file, "").unwrap();
            }
            symlink(file, dir.join(format!("fd/{number}"))).unwrap();
        }
    }

    fn children(&self, pid: i32, children: &[i32]) {
        let dir = self.root.path().join(format!("{pid}/task/{pid}"));
        fs::create_dir_all(&dir).unwrap();
        let words: Vec<_> = children.iter().map(i32::to_string).collect();
        fs::write(dir.join("children"), words.join(" ")).unwrap();
    }

    fn link(&self, pid: i32, number: i32, target: &str) {
        symlink(target, self.root.path().join(format!("{pid}/fd/{number}"))).unwrap();
    }

    /// Its epoll descriptor is number 6, and waits for this socket.
    fn waits_at(&self, pid: i32, socket: i32) {
        let info = self.root.path().join(format!("{pid}/fdinfo"));
        fs::create_dir_all(&info).unwrap();
        let line = format!("pos:\t0\ntfd:        {socket} events:       19\n");
        fs::write(info.join("6"), line).unwrap();
    }

    /// It handles this signal, and no other.
    fn handles(&self, pid: i32, signal: Signal) {
        let mask = format!("SigCgt:\t{:016x}\n", 1_u64 << (signal.0 - 1));
        fs::write(self.root.path().join(format!("{pid}/status")), mask).unwrap();
    }

    fn hold(&self, pid: i32, name: &str) {
        let file = self.files.path().join(format!("wgunicorn-{name}"));
        fs::write(&file, "").unwrap();
        symlink(file, self.root.path().join(format!("{pid}/fd/9"))).unwrap();
    }
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_nanos(1_000_000_000 + millis * 1_000_000)
}

#[test]
fn a_fork_whose_heartbeat_file_its_master_does_not_hold_is_a_helper() {
    let tree = Tree::new();
    let master = "python gunicorn --dirty-app a:A a:app";
    tree.add(10, master, (1, STACK), &["a"]);
    // The dirty arbiter is forked first, and holds the file of its one dirty worker.
    tree.add(11, master, (10, STACK), &["dirty"]);
    tree.add(12, master, (10, STACK), &["a"]);
    tree.add(13, master, (11, STACK), &["dirty"]);
    tree.children(10, &[11, 12]);
    tree.children(11, &[13]);
    let mut search = Search::new(10, &gunicorn::PROFILE, false, at(0));
    let found = search.scan(&tree.proc(), at(0));
    assert_eq!(
        found,
        [Finding::Seen { pid: 12 }, Finding::Masters { count: 1 }]
    );
    for millis in (20..1_990).step_by(20) {
        let found = search.scan(&tree.proc(), at(millis));
        assert_eq!(found, [], "after {millis} ms");
    }
    let later: Vec<_> = [2_000, 2_020, 5_000]
        .into_iter()
        .flat_map(|millis| search.scan(&tree.proc(), at(millis)))
        .collect();
    assert_eq!(later, [Finding::Helper { pid: 11 }]);
}

#[test]
fn a_respawned_dirty_arbiter_that_holds_the_files_of_workers_is_not_a_worker() {
    let tree = Tree::new();
    tree.add(10, "gunicorn a:app", (1, STACK), &["a", "b"]);
    for (pid, holds) in [(11, vec!["a"]), (12, vec!["b"]), (13, vec!["a", "b"])] {
        tree.add(pid, "gunicorn a:app", (10, STACK), &holds);
    }
    tree.children(10, &[11, 12, 13]);
    let mut search = Search::new(10, &gunicorn::PROFILE, false, at(0));
    let found = search.scan(&tree.proc(), at(0));
    let seen = |pid| Finding::Seen { pid };
    assert_eq!(found, [seen(11), seen(12), Finding::Masters { count: 1 }]);
}

#[test]
fn a_program_of_any_name_that_embeds_gunicorn_is_a_master() {
    let tree = Tree::new();
    tree.add(9, "sh start.sh", (1, STACK + 1), &[]);
    tree.add(10, "python serve.py", (9, STACK), &[]);
    tree.children(9, &[10]);
    let mut search = Search::new(9, &gunicorn::PROFILE, false, at(0));
    assert_eq!(search.scan(&tree.proc(), at(0)), []);
    tree.hold(10, "a");
    tree.add(11, "python serve.py", (10, STACK), &["a"]);
    tree.children(10, &[11]);
    let found = search.scan(&tree.proc(), at(20));
    assert_eq!(
        found,
        [Finding::Seen { pid: 11 }, Finding::Masters { count: 1 }]
    );
    assert_eq!(search.main_master(), Some(10));
}

#[test]
fn the_dirty_arbiter_of_an_embedded_gunicorn_is_not_taken_for_its_master() {
    let tree = Tree::new();
    tree.add(10, "python serve.py", (1, STACK), &[]);
    tree.add(11, "python serve.py", (10, STACK), &["dirty"]);
    tree.add(12, "python serve.py", (11, STACK), &["dirty"]);
    tree.children(10, &[11]);
    tree.children(11, &[12]);
    let mut search = Search::new(10, &gunicorn::PROFILE, false, at(0));
    assert_eq!(search.scan(&tree.proc(), at(0)), []);
    assert_eq!(search.scan(&tree.proc(), at(1_000)), []);
    tree.hold(10, "a");
    tree.add(13, "python serve.py", (10, STACK), &["a"]);
    tree.children(10, &[11, 13]);
    let found = search.scan(&tree.proc(), at(1_020));
    assert_eq!(
        found,
        [Finding::Seen { pid: 13 }, Finding::Masters { count: 1 }]
    );
    assert_eq!(search.main_master(), Some(10));
}

#[test]
fn gunicorn_in_a_fork_of_another_program_is_found_a_little_later() {
    let tree = Tree::new();
    tree.add(10, "python serve.py", (1, STACK), &[]);
    tree.add(11, "python serve.py", (10, STACK), &["a"]);
    tree.add(12, "python serve.py", (11, STACK), &["a"]);
    tree.children(10, &[11]);
    tree.children(11, &[12]);
    let mut search = Search::new(10, &gunicorn::PROFILE, false, at(0));
    assert_eq!(search.scan(&tree.proc(), at(0)), []);
    let found = search.scan(&tree.proc(), at(2_000));
    assert_eq!(
        found,
        [Finding::Seen { pid: 12 }, Finding::Masters { count: 1 }]
    );
}

#[test]
fn a_second_master_is_a_child_that_has_executed_gunicorn() {
    let tree = Tree::new();
    tree.add(10, "gunicorn a:app", (1, STACK), &["a"]);
    tree.add(11, "gunicorn a:app", (10, STACK), &["a"]);
    tree.add(12, "gunicorn a:app", (10, STACK), &[]);
    tree.children(10, &[11, 12]);
    let mut search = Search::new(10, &gunicorn::PROFILE, false, at(0));
    let seen = Finding::Seen { pid: 11 };
    let one = Finding::Masters { count: 1 };
    assert_eq!(search.scan(&tree.proc(), at(0)), [seen, one]);
    fs::remove_dir_all(tree.root.path().join("12")).unwrap();
    tree.add(12, "gunicorn a:app", (10, STACK + 7), &[]);
    let two = Finding::Masters { count: 2 };
    assert_eq!(search.scan(&tree.proc(), at(20)), [two]);
    assert_eq!(search.masters(), [10, 12]);
}

#[test]
fn a_fork_that_still_holds_the_file_of_an_older_worker_does_not_claim_it() {
    let tree = Tree::new();
    tree.add(10, "gunicorn a:app", (1, STACK), &["a", "b"]);
    tree.add(11, "gunicorn a:app", (10, STACK), &["a", "b"]);
    tree.children(10, &[11]);
    let mut search = Search::new(10, &gunicorn::PROFILE, false, at(0));
    search.scan(&tree.proc(), at(0));
    tree.add(12, "gunicorn a:app", (10, STACK), &["a"]);
    tree.children(10, &[11, 12]);
    let found = search.scan(&tree.proc(), at(20));
    assert_eq!(found, [Finding::Seen { pid: 12 }]);
}

#[test]
fn a_fork_whose_files_cannot_be_read_counts_as_a_worker_for_a_while() {
    let tree = Tree::new();
    tree.add(10, "gunicorn a:app", (1, STACK), &["a"]);
    tree.add(11, "gunicorn a:app", (10, STACK), &[]);
    fs::remove_dir(tree.root.path().join("11/fd")).unwrap();
    tree.children(10, &[11]);
    let mut search = Search::new(10, &gunicorn::PROFILE, false, at(0));
    let seen = Finding::Seen { pid: 11 };
    let one = Finding::Masters { count: 1 };
    assert_eq!(search.scan(&tree.proc(), at(0)), [seen, one]);
    assert_eq!(search.scan(&tree.proc(), at(1_980)), []);
    let none = Finding::NoWorker { pid: 11 };
    assert_eq!(search.scan(&tree.proc(), at(2_000)), [none]);
}

#[test]
fn a_worker_whose_master_was_killed_is_not_taken_for_a_master() {
    let tree = Tree::new();
    tree.add(9, "sh start.sh", (1, STACK + 1), &[]);
    tree.add(10, "gunicorn a:app", (9, STACK), &["a"]);
    tree.add(11, "gunicorn a:app", (10, STACK), &["a"]);
    tree.children(9, &[10]);
    tree.children(10, &[11]);
    let mut search = Search::new(9, &gunicorn::PROFILE, false, at(0));
    search.scan(&tree.proc(), at(0));
    assert_eq!(search.main_master(), Some(10));
    // The master is a zombie, and its worker is still its child.
    let stat = tree.root.path().join("10/stat");
    let zombie = fs::read_to_string(&stat).unwrap().replace(" S ", " Z ");
    fs::write(stat, zombie).unwrap();
    search.scan(&tree.proc(), at(20));
    assert_eq!(search.main_master(), None);
}

#[test]
fn a_program_whose_child_has_executed_another_program_does_not_embed_a_server() {
    let tree = Tree::new();
    tree.add(10, "python serve.py", (1, STACK), &["a"]);
    tree.add(11, "sh tool.sh", (10, STACK + 1), &["a"]);
    tree.children(10, &[11]);
    let mut search = Search::new(10, &gunicorn::PROFILE, false, at(0));
    assert_eq!(search.scan(&tree.proc(), at(0)), []);
    assert_eq!(server_below(&tree.proc(), 10), None);
}

#[test]
fn a_server_below_a_script_is_found_by_its_name_or_its_workers() {
    let tree = Tree::new();
    tree.add(9, "sh start.sh", (1, STACK + 1), &[]);
    tree.children(9, &[10]);
    tree.add(10, "gunicorn a:app", (9, STACK), &[]);
    assert_eq!(
        server_below(&tree.proc(), 9),
        Some((10, &gunicorn::PROFILE))
    );
    fs::remove_dir_all(tree.root.path().join("10")).unwrap();
    tree.add(10, "python serve.py", (9, STACK), &["a"]);
    assert_eq!(server_below(&tree.proc(), 9), None);
    tree.add(11, "python serve.py", (10, STACK), &["a"]);
    tree.children(10, &[11]);
    assert_eq!(
        server_below(&tree.proc(), 9),
        Some((10, &gunicorn::PROFILE))
    );
}

/// uvicorn as process 10, with a worker 11 and multiprocessing's resource tracker 12.
fn uvicorn(tree: &Tree) -> Search {
    tree.add(
        10,
        "/x/bin/python /x/bin/uvicorn --workers 2 a:b",
        (1, STACK),
        &[],
    );
    tree.add(
        11,
        "/x/bin/python -c spawn_main(tracker_fd=5) --multiprocessing-fork",
        (10, STACK + 1),
        &[],
    );
    tree.add(12, "/x/bin/python -c main(4)", (10, STACK + 2), &[]);
    tree.children(10, &[11, 12]);
    Search::new(10, &crate::servers::uvicorn::PROFILE, false, at(0))
}

#[test]
fn a_spawned_worker_is_ready_when_it_waits_at_a_socket_of_its_server() {
    let tree = Tree::new();
    let mut search = uvicorn(&tree);
    let found = search.scan(&tree.proc(), at(0));
    assert!(found.contains(&Finding::Seen { pid: 11 }), "{found:?}");
    assert!(!found.contains(&Finding::Seen { pid: 12 }), "{found:?}");
    // It holds the inherited socket, and does not wait at it yet.
    tree.link(10, 3, "socket:[700]");
    tree.link(11, 4, "socket:[700]");
    tree.link(11, 6, "anon_inode:[eventpoll]");
    let ready = Finding::Ready { pid: 11 };
    assert!(!search.scan(&tree.proc(), at(100)).contains(&ready));
    tree.waits_at(11, 4);
    assert!(search.scan(&tree.proc(), at(200)).contains(&ready));
    assert!(
        !search.scan(&tree.proc(), at(300)).contains(&ready),
        "reported twice"
    );
}

#[test]
fn a_booting_worker_becomes_ready_even_if_its_stat_can_no_longer_be_read() {
    let tree = Tree::new();
    tree.add(10, "gunicorn a:app", (1, STACK), &["a"]);
    tree.add(11, "gunicorn a:app", (10, STACK), &["a"]);
    tree.children(10, &[11]);
    let mut search = Search::new(10, &gunicorn::PROFILE, false, at(0));
    let seen = Finding::Seen { pid: 11 };
    assert!(search.scan(&tree.proc(), at(0)).contains(&seen));
    // Like when no descriptor is free.
    fs::remove_file(tree.root.path().join("11/stat")).unwrap();
    assert_eq!(search.scan(&tree.proc(), at(20)), []);
    let beat = fs::File::open(tree.files.path().join("wgunicorn-a")).unwrap();
    let uptime = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(7);
    beat.set_modified(uptime).unwrap();
    let ready = Finding::Ready { pid: 11 };
    assert!(search.scan(&tree.proc(), at(40)).contains(&ready));
}

#[test]
fn a_spawned_worker_without_a_command_line_yet_is_not_taken_for_a_helper() {
    let tree = Tree::new();
    let mut search = uvicorn(&tree);
    let line = tree.root.path().join("11/cmdline");
    let whole = fs::read(&line).unwrap();
    fs::write(&line, "").unwrap();
    let found = search.scan(&tree.proc(), at(0));
    assert!(found.contains(&Finding::Seen { pid: 11 }), "{found:?}");
    fs::write(&line, whole).unwrap();
    let found = search.scan(&tree.proc(), at(100));
    assert!(!found.contains(&Finding::NoWorker { pid: 11 }), "{found:?}");
    let found = search.scan(&tree.proc(), at(5000));
    assert!(!found.contains(&Finding::Helper { pid: 11 }), "{found:?}");
}

#[test]
fn a_server_with_a_known_command_line_is_found_when_it_has_workers() {
    for (command, stack, is_found) in [
        ("/x/bin/python /x/bin/taskiq worker a:b", STACK, true),
        ("taskiq worker a:b", STACK, true),
        // Its child is the resource tracker.
        ("taskiq worker a:b", STACK + 1, false),
        ("taskiq scheduler a:b", STACK, false),
        ("python worker.py", STACK, false),
    ] {
        let tree = Tree::new();
        tree.add(10, command, (1, STACK), &[]);
        assert_eq!(server_below(&tree.proc(), 10), None);
        tree.add(11, "python -c main(4)", (10, stack), &[]);
        tree.children(10, &[11]);
        let found = is_found.then_some((10, &taskiq::PROFILE));
        assert_eq!(server_below(&tree.proc(), 10), found, "{command}");
    }
}

#[test]
fn a_worker_for_tasks_serves_when_it_has_waited_for_a_second() {
    let tree = Tree::new();
    tree.add(10, "taskiq worker a:b", (1, STACK), &[]);
    tree.add(11, "taskiq worker a:b", (10, STACK), &[]);
    tree.add(12, "", (10, STACK + 1), &[]);
    tree.children(10, &[11, 12]);
    let mut search = Search::new(10, &taskiq::PROFILE, false, at(0));
    search.scan(&tree.proc(), at(0));
    // The second child turns out to be the resource tracker.
    fs::write(tree.root.path().join("12/cmdline"), "python\0-c\0main(4)\0").unwrap();
    let found = search.scan(&tree.proc(), at(100));
    assert_eq!(found, [Finding::NoWorker { pid: 12 }]);
    assert_eq!(search.scan(&tree.proc(), at(1000)), []);
    let found = search.scan(&tree.proc(), at(1100));
    assert_eq!(found, [Finding::Ready { pid: 11 }]);
}

#[test]
fn a_gateway_of_uwsgi_is_not_a_worker() {
    let tree = Tree::new();
    for (pid, parent) in [(10, 1), (11, 10), (12, 10)] {
        tree.add(pid, "uwsgi --ini a.ini", (parent, STACK), &[]);
        tree.link(pid, 4, "socket:[700]");
        tree.link(pid, 6, "anon_inode:[eventpoll]");
        tree.waits_at(pid, 4);
    }
    tree.handles(11, Signal::HUP);
    tree.handles(12, Signal::TERM);
    // Without a master process, the gateway is the only child.
    tree.children(10, &[12]);
    assert_eq!(server_below(&tree.proc(), 10), None);
    tree.children(10, &[11, 12]);
    let found = server_below(&tree.proc(), 10);
    assert_eq!(found, Some((10, &uwsgi::PROFILE)));
    let mut search = Search::new(10, &uwsgi::PROFILE, false, at(0));
    search.scan(&tree.proc(), at(0));
    let found = search.scan(&tree.proc(), at(100));
    let expected = [Finding::Ready { pid: 11 }, Finding::NoWorker { pid: 12 }];
    assert_eq!(found, expected);
}

#[test]
fn a_copy_that_is_busy_serves_when_it_waits_again_after_a_second() {
    let tree = Tree::new();
    tree.add(10, "supervise-fleet", (1, STACK), &[]);
    tree.add(11, "python serve.py", (10, STACK + 1), &[]);
    tree.children(10, &[11]);
    tree.link(10, 3, "socket:[700]");
    tree.link(11, 3, "socket:[700]");
    let does = |call: &str| {
        fs::write(tree.root.path().join("11/task/11/syscall"), call).unwrap();
    };
    let select = format!("{} 0x4 0x0", libc::SYS_pselect6);
    let futex = format!("{} 0x4 0x0", libc::SYS_futex);
    let read = format!("{} 0x4 0x0", libc::SYS_read);
    let mut search = Search::new(10, &crate::servers::fleet::PROFILE, false, at(0));
    for (millis, call, is_ready) in [
        (0, "running", false),
        (100, &*select, false),
        (500, &*read, false),
        // A wait before it reads files does not count.
        (600, &*select, false),
        (1200, &*select, false),
        (1500, "running", false),
        (1700, &*futex, false),
        (1800, &*select, true),
    ] {
        does(call);
        let found = search.scan(&tree.proc(), at(millis));
        let ready = found.contains(&Finding::Ready { pid: 11 });
        assert_eq!(ready, is_ready, "at {millis} ms: {found:?}");
    }
}
