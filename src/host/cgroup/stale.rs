//! Removes the groups that an earlier life of a service left.

use std::path::PathBuf;

use super::{
    Found, Version, files,
    owner::{self, Owner},
    tree,
};
use crate::host::procfs::Proc;

/// Ends and removes what earlier lives of the service of this name have left when they were killed
/// themselves. Returns what could not be removed yet: try again.
pub fn remove_stale(found: &Found, proc: &Proc, name: &str, pid: i32) -> Vec<PathBuf> {
    let places = found.memory.iter().chain(&found.tree);
    // In version 2 they may be beside a group above (see `beside`), and ours may be its leaf.
    let bases = places.flat_map(|place| {
        let levels = match place.version {
            Version::V1 => 1,
            Version::V2 => usize::MAX,
        };
        place.path().take(levels)
    });
    let mut left = Vec::new();
    for dir in bases.flat_map(files::below) {
        let folder = dir.file_name().unwrap_or_default().to_string_lossy();
        let Some(owner) = owner::pid_in(&folder, name) else {
            continue;
        };
        // Locked until it is removed, so that no other service takes it meanwhile.
        let _ours = match owner::lock(&dir) {
            Owner::Gone => continue,
            Owner::Another => {
                // RACE: a process that its owner had just forked shares the lock until it executes.
                if owner == pid && proc.stat(pid).is_err() {
                    left.push(dir);
                }
                continue;
            }
            lock @ (Owner::Us(_) | Owner::Unknown) => lock,
        };
        // Earlier versions hold no lock. Our own pid is that of an earlier life in another pid
        // namespace: we have made none yet.
        if owner != pid && proc.stat(owner).is_ok() {
            continue;
        }
        // What cannot be killed cannot be removed either, and is returned.
        let _ = tree::kill_all(&dir);
        tree::remove_all(&dir, &mut left);
    }
    left
}
