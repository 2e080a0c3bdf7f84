//! Removes the groups that an earlier run of a service has left behind.

use std::path::PathBuf;

use super::{
    Found, files,
    owner::{self, Owner},
    tree,
};
use crate::host::memory::procfs::Proc;

/// Kills the processes in, and removes, the groups that earlier runs of the service of this name
/// have left behind because they were killed. Returns the directories that could not be removed
/// yet: try again.
pub fn remove_stale(found: &Found, proc: &Proc, name: &str, pid: i32) -> Vec<PathBuf> {
    let places = found.memory.iter().chain(&found.tree);
    // In version 2 the groups may be in a group above ours (see `beside`), and we may be in a leaf.
    let bases = places.flat_map(|place| {
        let levels = place.version.backend().levels();
        place.path().take(levels)
    });
    let mut left = Vec::new();
    for dir in bases.flat_map(files::below) {
        let folder = dir.file_name().unwrap_or_default().to_string_lossy();
        let Some(owner) = owner::pid_in(&folder, name) else {
            continue;
        };
        // Locked until it is removed, so that no other service uses it meanwhile.
        let _ours = match owner::lock(&dir) {
            Owner::Gone => continue,
            Owner::Another => {
                // RACE: a process that its owner had just forked shares the lock until it executes,
                // and a service of the same name that starts now holds the lock while it tries to
                // remove the directory. The owner has ended, but its parent may not have reaped it.
                if owner == pid && has_ended(proc, pid) {
                    left.push(dir);
                }
                continue;
            }
            lock @ (Owner::Us(_) | Owner::Unknown) => lock,
        };
        // Earlier versions hold no lock. A directory with our own pid is from an earlier run in
        // another pid namespace, because we have made none yet.
        if owner != pid && proc.stat(owner).is_ok() {
            continue;
        }
        // A directory whose processes cannot be killed cannot be removed either, and is returned.
        let _ = tree::kill_all(&dir);
        tree::remove_all(&dir, &mut left);
    }
    left
}

fn has_ended(proc: &Proc, pid: i32) -> bool {
    proc.stat(pid).map_or(true, |stat| stat.state == 'Z')
}
