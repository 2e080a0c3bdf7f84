//! What the groups of a service are to a successor that finds them there.

use std::{fs::File, os::fd::RawFd, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Group, Groups, Obstacle, Trial, Version, files,
    oom::Counts,
    owner::{self, Owner},
    v1::Calls,
};
use crate::host::exec::adopt;

/// All groups of a service.
#[derive(Debug, Deserialize, Serialize)]
pub struct HandedGroups {
    v1: Option<PathBuf>,
    v2: Option<PathBuf>,
    memory: Option<Version>,
    divided: Option<PathBuf>,
    obstacle: Option<Obstacle>,
    trial: Trial,
    /// The locks on our folders. Earlier versions had none.
    #[serde(default)]
    locks: Vec<RawFd>,
}

/// One of them.
#[derive(Debug, Deserialize, Serialize)]
pub struct HandedGroup {
    name: String,
    /// What the OOM killer had done there when it was last asked for.
    seen: Counts,
}

impl Groups {
    /// What a successor needs to know of them.
    pub fn hand_over(&self) -> HandedGroups {
        HandedGroups {
            v1: self.v1.clone(),
            v2: self.v2.clone(),
            memory: self.memory,
            divided: self.divided.clone(),
            obstacle: self.obstacle.clone(),
            trial: self.trial,
            locks: self.descriptors().collect(),
        }
    }

    /// Takes them as they are: nothing is made, tried or changed.
    pub fn take_over(handed: HandedGroups, pid: i32) -> Self {
        let watch = |dir: &PathBuf| {
            let above = dir.parent()?;
            Calls::watch(dir).ok().zip(Calls::watch(above).ok())
        };
        let mut locks: Vec<File> = handed
            .locks
            .into_iter()
            .filter_map(adopt)
            .map(File::from)
            .collect();
        if locks.is_empty() {
            let dirs = handed.v1.iter().chain(&handed.v2);
            locks.extend(dirs.filter_map(|dir| match owner::lock(dir) {
                Owner::Us(lock) => Some(lock),
                Owner::Another | Owner::Gone | Owner::Unknown => None,
            }));
        }
        Self {
            locks,
            calls: handed.v1.as_ref().and_then(watch),
            v1: handed.v1,
            v2: handed.v2,
            memory: handed.memory,
            divided: handed.divided,
            pid,
            obstacle: handed.obstacle,
            trial: handed.trial,
        }
    }

    /// Takes one of them, with its wire lifted: the one who would have heard of it is gone.
    pub fn take_over_group(&self, handed: HandedGroup) -> Group {
        let Ok(mut group) = self.leaf(&handed.name) else {
            return Group::nowhere(&handed.name);
        };
        if self.memory == Some(Version::V2)
            && let Some(v2) = &group.v2
        {
            let _ = files::write(&v2.dir.join("memory.high"), "max");
        }
        // RACE: the killer may have been here in between. Version 2 has all its counts in files. In
        // version 1 the calls were counted by descriptors that are closed: such an end is told as
        // `oom` and not as `cap`.
        group.seen = match self.memory {
            Some(Version::V1) => Counts {
                kills: handed.seen.kills,
                ..Counts::default()
            },
            Some(Version::V2) | None => handed.seen,
        };
        group
    }
}

impl Group {
    /// What a successor needs to know of it; `None` for no group at all.
    pub fn hand_over(&self) -> Option<HandedGroup> {
        Some(HandedGroup {
            name: self.name()?,
            seen: self.seen,
        })
    }

    /// Its name; `None` for no group at all.
    pub fn name(&self) -> Option<String> {
        self.holds_processes().then(|| self.name.clone())
    }
}
