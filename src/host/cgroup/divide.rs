//! Making room for groups in version 2, whose groups either hold processes or hand on controllers
//! (`cgroup-v2.rst`, "No Internal Process Constraint").

use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, eaccess};

use super::{CgroupError, Place, files, found};
use crate::host::keeper::children;

/// Where we live in version 2, beside the service's group.
const OURS: &str = "supervisor";

/// Lets a version 2 group hand on the memory controller. We leave it for a leaf of it first, unless
/// it is the root, which may do both; says whether we did.
pub(super) fn divide(own: &Path, pid: i32) -> Result<Option<PathBuf>, CgroupError> {
    let hand_on = || hand_on(own, "memory");
    // Only the root has no type.
    if !own.join("cgroup.type").exists() {
        return hand_on().map(|()| None);
    }
    let leaf = own.join(OURS);
    files::make(&leaf)?;
    let procs = leaf.join("cgroup.procs");
    files::write(&procs, &pid.to_string())
        // The sweeper was started before. One that has ended lives nowhere.
        .map(|()| {
            children()
                .iter()
                .for_each(|child| drop(files::write(&procs, &child.to_string())))
        })
        .and_then(|()| hand_on())
        // Strangers live there (EBUSY), or the controller was not handed on to it (ENOENT).
        .inspect_err(|_| undivide(own, pid))
        .map(|()| Some(own.to_owned()))
}

/// Lets a group hand a controller on to those below it.
pub(super) fn hand_on(own: &Path, controller: &str) -> Result<(), CgroupError> {
    files::write(
        &own.join("cgroup.subtree_control"),
        &format!("+{controller}"),
    )
}

/// Back from the leaf. What fails here leaves an empty group behind, and nothing else.
pub(super) fn undivide(own: &Path, pid: i32) {
    let control = own.join("cgroup.subtree_control");
    for controller in files::read(&control).unwrap_or_default().split_whitespace() {
        let name = controller.trim_start_matches('+');
        let _ = files::write(&control, &format!("-{name}"));
    }
    for pid in std::iter::once(pid).chain(children()) {
        let _ = files::write(&own.join("cgroup.procs"), &pid.to_string());
    }
    let _ = files::remove(&own.join(OURS));
}

/// The nearest group above ours that hands on the memory controller already and lets us make a
/// group beside our own one. Never one that would take us out of a limit.
pub(super) fn beside(place: &Place) -> Option<PathBuf> {
    let mut below = place.own.as_path();
    for dir in place.path().skip(1) {
        if found::limits_of(below).next().is_some() {
            return None;
        }
        let hands_on = files::has_word(&dir.join("cgroup.subtree_control"), "memory");
        if hands_on && eaccess(dir, AccessFlags::W_OK).is_ok() {
            return Some(dir.to_owned());
        }
        below = dir;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::Version, *};

    /// A version 2 tree of these files; a file named `DIR/` is an empty folder.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            if name.ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
        }
        root
    }

    fn place(root: &tempfile::TempDir, own: &str) -> Place {
        Place {
            version: Version::V2,
            top: root.path().to_owned(),
            own: root.path().join(own),
        }
    }

    #[test]
    fn we_go_to_a_leaf_before_controllers_are_handed_on() {
        let root = tree(&[
            ("own/cgroup.type", "domain\n"),
            ("own/cgroup.procs", "42\n"),
            ("own/cgroup.subtree_control", ""),
            ("own/supervisor/cgroup.procs", ""),
        ]);
        let own = root.path().join("own");
        let now = |file: &str| fs::read_to_string(own.join(file)).unwrap();
        assert_eq!(divide(&own, 42).unwrap(), Some(own.clone()));
        assert_eq!(now("supervisor/cgroup.procs"), "42");
        assert_eq!(now("cgroup.subtree_control"), "+memory");

        fs::write(own.join("cgroup.procs"), "").unwrap();
        undivide(&own, 42);
        assert_eq!(now("cgroup.subtree_control"), "-memory");
        assert_eq!(now("cgroup.procs"), "42");
    }

    #[test]
    fn the_root_may_hold_processes_and_hand_on() {
        let root = tree(&[("cgroup.procs", "1\n"), ("cgroup.subtree_control", "")]);
        assert_eq!(divide(root.path(), 1).unwrap(), None);
        assert!(!root.path().join(OURS).exists());
    }

    #[test]
    fn where_strangers_live_we_go_back() {
        // A folder cannot be written to, as a group with processes in it cannot hand on.
        let root = tree(&[
            ("own/cgroup.type", "domain\n"),
            ("own/cgroup.procs", ""),
            ("own/cgroup.subtree_control/", ""),
            ("own/supervisor/cgroup.procs", ""),
        ]);
        let own = root.path().join("own");
        let error = divide(&own, 42).unwrap_err().to_string();
        assert!(error.starts_with("write +memory to /"), "{error}");
        let back = fs::read_to_string(own.join("cgroup.procs")).unwrap();
        assert_eq!(back, "42");
    }

    #[test]
    fn a_group_beside_ours_is_below_the_nearest_that_hands_on() {
        let root = tree(&[
            ("cgroup.subtree_control", "cpu memory\n"),
            ("user/cgroup.subtree_control", "memory pids\n"),
            ("user/a/cgroup.subtree_control", "pids\n"),
            ("user/a/own/memory.max", "max\n"),
        ]);
        let expected = Some(root.path().join("user"));
        assert_eq!(beside(&place(&root, "user/a/own")), expected);
        // Not above what we may see.
        let mut place = place(&root, "user/a/own");
        place.top = root.path().join("user/a");
        assert_eq!(beside(&place), None);
    }

    #[test]
    fn nobody_is_taken_out_of_a_limit() {
        for limit in ["own/memory.max", "own/memory.high"] {
            let root = tree(&[
                ("cgroup.subtree_control", "memory\n"),
                ("own/memory.max", "max\n"),
                (limit, "1073741824\n"),
            ]);
            assert_eq!(beside(&place(&root, "own")), None);
        }
    }
}
