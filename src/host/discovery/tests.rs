//! Searches through trees of processes that a test has written down.

use std::{fs, os::unix::fs::symlink, path::Path};

use super::{Discovery, Finding, server_below};
use crate::{host::procfs::Proc, units::Timestamp};

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
    // The dirty arbiter, forked first, with the file of its one dirty worker.
    tree.add(11, master, (10, STACK), &["dirty"]);
    tree.add(12, master, (10, STACK), &["a"]);
    tree.add(13, master, (11, STACK), &["dirty"]);
    tree.children(10, &[11, 12]);
    tree.children(11, &[13]);
    let mut search = Discovery::new(10, false, at(0));
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
fn a_respawned_dirty_arbiter_holds_its_brothers_files_and_is_no_worker() {
    let tree = Tree::new();
    tree.add(10, "gunicorn a:app", (1, STACK), &["a", "b"]);
    for (pid, holds) in [(11, vec!["a"]), (12, vec!["b"]), (13, vec!["a", "b"])] {
        tree.add(pid, "gunicorn a:app", (10, STACK), &holds);
    }
    tree.children(10, &[11, 12, 13]);
    let mut search = Discovery::new(10, false, at(0));
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
    let mut search = Discovery::new(9, false, at(0));
    assert_eq!(search.scan(&tree.proc(), at(0)), []);
    tree.hold(10, "a");
    tree.add(11, "python serve.py", (10, STACK), &["a"]);
    tree.children(10, &[11]);
    let found = search.scan(&tree.proc(), at(20));
    assert_eq!(
        found,
        [Finding::Seen { pid: 11 }, Finding::Masters { count: 1 }]
    );
    assert_eq!(search.main(), Some(10));
}

#[test]
fn the_dirty_arbiter_of_an_embedded_gunicorn_is_not_taken_for_its_master() {
    let tree = Tree::new();
    tree.add(10, "python serve.py", (1, STACK), &[]);
    tree.add(11, "python serve.py", (10, STACK), &["dirty"]);
    tree.add(12, "python serve.py", (11, STACK), &["dirty"]);
    tree.children(10, &[11]);
    tree.children(11, &[12]);
    let mut search = Discovery::new(10, false, at(0));
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
    assert_eq!(search.main(), Some(10));
}

#[test]
fn gunicorn_in_a_fork_of_another_program_is_found_a_little_later() {
    let tree = Tree::new();
    tree.add(10, "python serve.py", (1, STACK), &[]);
    tree.add(11, "python serve.py", (10, STACK), &["a"]);
    tree.add(12, "python serve.py", (11, STACK), &["a"]);
    tree.children(10, &[11]);
    tree.children(11, &[12]);
    let mut search = Discovery::new(10, false, at(0));
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
    let mut search = Discovery::new(10, false, at(0));
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
fn a_fork_that_still_holds_its_brothers_file_has_not_taken_it() {
    let tree = Tree::new();
    tree.add(10, "gunicorn a:app", (1, STACK), &["a", "b"]);
    tree.add(11, "gunicorn a:app", (10, STACK), &["a", "b"]);
    tree.children(10, &[11]);
    let mut search = Discovery::new(10, false, at(0));
    search.scan(&tree.proc(), at(0));
    tree.add(12, "gunicorn a:app", (10, STACK), &["a"]);
    tree.children(10, &[11, 12]);
    let found = search.scan(&tree.proc(), at(20));
    assert_eq!(found, [Finding::Seen { pid: 12 }]);
}

#[test]
fn a_fork_whose_files_may_not_be_looked_at_is_a_worker_for_a_while() {
    let tree = Tree::new();
    tree.add(10, "gunicorn a:app", (1, STACK), &["a"]);
    tree.add(11, "gunicorn a:app", (10, STACK), &[]);
    fs::remove_dir(tree.root.path().join("11/fd")).unwrap();
    tree.children(10, &[11]);
    let mut search = Discovery::new(10, false, at(0));
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
    let mut search = Discovery::new(9, false, at(0));
    search.scan(&tree.proc(), at(0));
    assert_eq!(search.main(), Some(10));
    // It is a zombie, and its worker is still its child.
    let stat = tree.root.path().join("10/stat");
    let zombie = fs::read_to_string(&stat).unwrap().replace(" S ", " Z ");
    fs::write(stat, zombie).unwrap();
    search.scan(&tree.proc(), at(20));
    assert_eq!(search.main(), None);
}

#[test]
fn a_program_whose_child_has_executed_another_one_embeds_no_server() {
    let tree = Tree::new();
    tree.add(10, "python serve.py", (1, STACK), &["a"]);
    tree.add(11, "sh tool.sh", (10, STACK + 1), &["a"]);
    tree.children(10, &[11]);
    let mut search = Discovery::new(10, false, at(0));
    assert_eq!(search.scan(&tree.proc(), at(0)), []);
    assert_eq!(server_below(&tree.proc(), 10), None);
}

#[test]
fn a_server_below_a_script_is_found_by_its_name_or_its_workers() {
    let tree = Tree::new();
    tree.add(9, "sh start.sh", (1, STACK + 1), &[]);
    tree.children(9, &[10]);
    tree.add(10, "gunicorn a:app", (9, STACK), &[]);
    assert_eq!(server_below(&tree.proc(), 9), Some(10));
    fs::remove_dir_all(tree.root.path().join("10")).unwrap();
    tree.add(10, "python serve.py", (9, STACK), &["a"]);
    assert_eq!(server_below(&tree.proc(), 9), None);
    tree.add(11, "python serve.py", (10, STACK), &["a"]);
    tree.children(10, &[11]);
    assert_eq!(server_below(&tree.proc(), 9), Some(10));
}
