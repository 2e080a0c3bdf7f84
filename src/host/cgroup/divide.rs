//! Making groups in version 2, where a group either has processes or enables controllers for its
//! children (`cgroup-v2.rst`, "No Internal Process Constraint").

use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, eaccess};

use super::{CgroupError, Place, files};
use crate::{host::process::keeper::children, units::Bytes};

/// The name of our own group in version 2, beside the service's group.
const OURS: &str = "supervisor";

/// Enables the memory controller for the children of a version 2 group. Moves us to a leaf of the
/// group first, unless the group is the root, which may have both processes and controllers.
/// Returns the group if we were moved.
pub(super) fn divide(own: &Path, pid: i32) -> Result<Option<PathBuf>, CgroupError> {
    let enable_controller = || enable_controller(own, "memory");
    // Only the root has no type.
    if !own.join("cgroup.type").exists() {
        return enable_controller().map(|()| None);
    }
    let leaf = own.join(OURS);
    files::make(&leaf)?;
    let procs = leaf.join("cgroup.procs");
    files::write(&procs, &pid.to_string())
        // The sweeper runs already. For a sweeper that has ended this fails, which is harmless.
        .map(|()| {
            children()
                .iter()
                .for_each(|child| drop(files::write(&procs, &child.to_string())))
        })
        .and_then(|()| enable_controller())
        // Other processes are in the group (EBUSY), or the group itself does not have the
        // controller (ENOENT).
        .inspect_err(|_| undivide(own, pid))
        .map(|()| Some(own.to_owned()))
}

/// Enables a controller for the children of a group.
pub(super) fn enable_controller(own: &Path, controller: &str) -> Result<(), CgroupError> {
    files::write(
        &own.join("cgroup.subtree_control"),
        &format!("+{controller}"),
    )
}

/// Moves us back from the leaf. If this fails, only an empty group is left.
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

/// The nearest group above ours that has the memory controller enabled for its children and lets us
/// make a group beside our own. Never a group that would free us from a limit.
pub(super) fn beside(place: &Place) -> Option<PathBuf> {
    let mut below = place.own.as_path();
    for dir in place.path().skip(1) {
        if limits_of(below).next().is_some() {
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

/// The limits of one version 2 group. The root and a group without the controller have none.
pub(super) fn limits_of(dir: &Path) -> impl Iterator<Item = Bytes> {
    let files = [dir.join("memory.max"), dir.join("memory.high")];
    files
        .into_iter()
        .filter_map(|file| files::limit(&file).ok().flatten())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::Version, *};

    /// A version 2 tree of these files; a name `DIR/` stands for an empty directory.
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
    fn we_move_to_a_leaf_before_controllers_are_enabled() {
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
    fn the_root_may_have_processes_and_enable_controllers() {
        let root = tree(&[("cgroup.procs", "1\n"), ("cgroup.subtree_control", "")]);
        assert_eq!(divide(root.path(), 1).unwrap(), None);
        assert!(!root.path().join(OURS).exists());
    }

    #[test]
    fn we_move_back_if_other_processes_are_in_the_group() {
        // Writing to a directory fails, like enabling a controller of a group that has processes.
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
    fn a_group_beside_ours_is_in_the_nearest_group_that_enables_memory() {
        let root = tree(&[
            ("cgroup.subtree_control", "cpu memory\n"),
            ("user/cgroup.subtree_control", "memory pids\n"),
            ("user/a/cgroup.subtree_control", "pids\n"),
            ("user/a/own/memory.max", "max\n"),
        ]);
        let expected = Some(root.path().join("user"));
        assert_eq!(beside(&place(&root, "user/a/own")), expected);
        // Not above the highest group that we can see.
        let mut place = place(&root, "user/a/own");
        place.top = root.path().join("user/a");
        assert_eq!(beside(&place), None);
    }

    #[test]
    fn a_group_is_never_made_outside_of_our_limit() {
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
