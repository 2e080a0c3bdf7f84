//! The state of a service's groups that the new binary needs.

use std::{fs::File, os::fd::RawFd, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Group, Groups, Obstacle, Trial,
    group::Folder,
    oom::Counts,
    owner::{self, Owner},
};
use crate::host::process::exec::adopt;

/// All groups of a service.
#[derive(Debug, Deserialize, Serialize)]
pub struct GroupsState {
    folders: Vec<Folder>,
    divided: Option<PathBuf>,
    obstacle: Option<Obstacle>,
    trial: Trial,
    /// The locks on our directories. Earlier versions had none.
    #[serde(default)]
    locks: Vec<RawFd>,
}

/// One group.
#[derive(Debug, Deserialize, Serialize)]
pub struct GroupState {
    name: String,
    /// The kills of the OOM killer there, as of the last check.
    seen: Counts,
}

impl Groups {
    /// The state that the new binary needs.
    pub fn hand_over(&self) -> GroupsState {
        GroupsState {
            folders: self.folders.clone(),
            divided: self.divided.clone(),
            obstacle: self.obstacle.clone(),
            trial: self.trial,
            locks: self.descriptors().collect(),
        }
    }

    /// Continues with the groups as they are: nothing is made, tried or changed.
    pub fn take_over(state: GroupsState, pid: i32) -> Self {
        let mut locks: Vec<File> = state
            .locks
            .into_iter()
            .filter_map(adopt)
            .map(File::from)
            .collect();
        if locks.is_empty() {
            let folders = state.folders.iter();
            locks.extend(folders.filter_map(|folder| match owner::lock(&folder.dir) {
                Owner::Us(lock) => Some(lock),
                Owner::Another | Owner::Gone | Owner::Unknown => None,
            }));
        }
        let mut groups = Self {
            locks,
            calls: None,
            folders: state.folders,
            divided: state.divided,
            pid,
            obstacle: state.obstacle,
            trial: state.trial,
        };
        let memory = groups.memory();
        groups.calls = memory.and_then(|(backend, dir)| backend.watch_calls(dir));
        groups
    }

    /// Takes one group, without its threshold, whose descriptor is closed.
    pub fn take_over_group(&self, state: GroupState) -> Group {
        let Ok(mut group) = self.leaf(&state.name) else {
            return Group::nowhere(&state.name);
        };
        let with_memory = group.folders.iter().find(|folder| folder.has_memory);
        group.seen = with_memory.map_or(state.seen, |folder| {
            let backend = folder.version.backend();
            backend.recover(&folder.dir, state.seen)
        });
        group
    }
}

impl Group {
    /// The state of the group that the new binary needs; `None` if there is no group.
    pub fn hand_over(&self) -> Option<GroupState> {
        Some(GroupState {
            name: self.name()?,
            seen: self.seen,
        })
    }

    /// Its name; `None` if there is no group.
    pub fn name(&self) -> Option<String> {
        self.holds_processes().then(|| self.name.clone())
    }
}
