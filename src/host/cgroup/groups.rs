//! The service's own part of the hierarchies: its budget, and a group for each worker in it.
//!
//! `OWN/supervise-NAME.PID/` holds the workers' groups and carries the budget; `OWN` is the group
//! we were started in. We stay outside of it. In version 2 a group with processes cannot hand on
//! controllers (`cgroup-v2.rst`, "No Internal Process Constraint"), so we go to `OWN/supervisor`.

use std::{
    fs::File,
    os::fd::{AsRawFd as _, RawFd},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{
    CgroupError, Found, Group, Memory, Obstacle, Place, Pressure, Version,
    divide::{beside, divide, hand_on, undivide},
    files,
    oom::{Counts, after_one, judge},
    owner,
    tree::{self, Tree},
    v1::{self, V1},
    v2::{self, V2},
};
use crate::{
    supervisor::event::{CapMechanism, Oom},
    units::Bytes,
};

/// All groups of one service.
#[derive(Debug)]
pub struct Groups {
    /// Our folder in a version 1 hierarchy, with the memory controller.
    pub(super) v1: Option<PathBuf>,
    /// Our folder in a version 2 hierarchy, with the memory controller or without.
    pub(super) v2: Option<PathBuf>,
    /// In which of them memory can be limited.
    pub(super) memory: Option<Version>,
    /// Version 1: who called the OOM killer, our budget or a limit above it.
    pub(super) calls: Option<(v1::Calls, v1::Calls)>,
    /// The version 2 group that we left for a leaf of it.
    pub(super) divided: Option<PathBuf>,
    pub(super) pid: i32,
    pub(super) obstacle: Option<Obstacle>,
    pub(super) trial: Trial,
    /// The locks on our folders, which show that they are in use.
    pub(super) locks: Vec<File>,
}

/// What was tried and held.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Trial {
    /// A cap on one group.
    pub cap: bool,
    /// With it, how much of it may be swap.
    pub swap: bool,
    /// A cap on all groups together.
    pub budget: bool,
    /// A trip wire.
    pub wire: bool,
    /// The end of a whole group at one blow.
    pub kill: bool,
}

impl Groups {
    /// Makes the service's groups and tries them out. What cannot be had is left out, and said by
    /// [`Groups::obstacle`]. Call it before anything else is started: in version 2 our process must
    /// be the only one in its group.
    pub fn create(found: &Found, name: &str, pid: i32) -> Self {
        let mut groups = Self {
            v1: None,
            v2: None,
            memory: None,
            calls: None,
            divided: None,
            pid,
            obstacle: found.obstacle.clone(),
            trial: Trial::default(),
            locks: Vec::new(),
        };
        if let Some(place) = &found.memory
            && let Err(error) = groups.make(place, name)
        {
            groups.memory = None;
            groups.obstacle = Some(Obstacle {
                why: error.to_string(),
                how: "nobody else may live in our group: start with `systemd-run --scope \
                      -p Delegate=yes supervise …`, or in a unit with `Delegate=yes`"
                    .to_owned(),
            });
        }
        if groups.v2.is_none()
            && let Some(place) = found.tree.as_ref().or(found.memory.as_ref())
            && place.version == Version::V2
        {
            // Without it, a tree is ended by one signal for each process: no reason to fail.
            groups.v2 = groups.make_folder(&place.own, name).ok();
        }
        groups.trial = groups.try_out();
        groups
    }

    /// Lets the kernel hold a limit over all groups together; `None` takes it away.
    pub fn set_budget(&mut self, budget: Option<Bytes>) -> Result<(), CgroupError> {
        match (self.memory, &self.v1, &self.v2) {
            (Some(Version::V1), Some(dir), _) => v1::set_limits(dir, budget, None),
            (Some(Version::V2), _, Some(dir)) => {
                files::write(&dir.join("memory.max"), &v2::text(budget))
            }
            _ => Err(CgroupError::NoMemory {
                name: "of the service".to_owned(),
            }),
        }
    }

    /// What all groups together are charged with and cannot give back: anonymous pages, and shared
    /// memory with what lies in a tmpfs. Page cache is not counted.
    pub fn held(&self) -> Option<Bytes> {
        let (dir, names) = match self.memory? {
            Version::V1 => (self.v1.as_ref()?, ["total_rss", "total_shmem"]),
            Version::V2 => (self.v2.as_ref()?, ["anon", "shmem"]),
        };
        let text = files::read(&dir.join("memory.stat")).ok()?;
        let [anon, shared] = names.map(|name| files::entry(&text, name).unwrap_or(0));
        Some(Bytes(anon.saturating_add(shared)))
    }

    /// Hears of pressure on all groups together, where the kernel tells it of groups.
    pub fn watch_pressure(&self) -> Option<Pressure> {
        Pressure::watch(&self.v2.as_ref()?.join("memory.pressure")).ok()
    }

    /// Hands a further controller on to the groups of workers. Only version 2 has one tree for all.
    pub fn enable(&self, controller: &str) -> Result<(), CgroupError> {
        let none = || {
            CgroupError::NoPlace(Obstacle {
                why: "no group of version 2 is ours".to_owned(),
                how: "it needs cgroup v2 and a delegated group".to_owned(),
            })
        };
        let dir = self.v2.as_ref().ok_or_else(none)?;
        let above = dir.parent().ok_or_else(none)?;
        [above, dir.as_path()]
            .iter()
            .try_for_each(|dir| hand_on(dir, controller))
    }

    /// The share of the processor that all groups together have beside their neighbours.
    pub fn set_cpu_weight(&self, weight: u64) -> Result<(), CgroupError> {
        self.enable("cpu")?;
        let dir = self.v2.iter();
        let mut files = dir.map(|dir| dir.join("cpu.weight"));
        files.try_for_each(|file| files::write(&file, &weight.to_string()))
    }

    /// Makes the group of that name, or takes it over.
    pub fn leaf(&self, name: &str) -> Result<Group, CgroupError> {
        let make = |service: &PathBuf| {
            let dir = service.join(name);
            files::make(&dir).map(|()| dir)
        };
        let v1 = self.v1.as_ref().map(make).transpose()?;
        let v2 = self.v2.as_ref().map(make).transpose()?;
        let memory: Option<Box<dyn Memory>> = match (self.memory, &v1, &v2) {
            (Some(Version::V1), Some(dir), _) => Some(Box::new(V1::open(dir.clone())?)),
            (Some(Version::V2), _, Some(dir)) => Some(Box::new(V2::open(dir.clone())?)),
            _ => None,
        };
        let mut group = Group {
            name: name.to_owned(),
            v1,
            v2: v2.map(Tree::open).transpose()?,
            memory,
            seen: Counts::default(),
        };
        group.seen = self.count(&group).unwrap_or_default();
        Ok(group)
    }

    /// As [`Groups::oom`], but a later call still gets the same answer.
    pub fn oom_so_far(&self, group: &Group) -> Oom {
        let now = self.count(group).unwrap_or(group.seen);
        judge(group.seen, now, self.memory == Some(Version::V1))
    }

    /// Whether the OOM killer ended somebody in a group whose end was not asked about yet, and why.
    pub fn oom(&self, group: &mut Group) -> Oom {
        let now = self.count(group).unwrap_or(group.seen);
        let oom = judge(group.seen, now, self.memory == Some(Version::V1));
        group.seen = after_one(group.seen, now);
        oom
    }

    /// SIGKILL for everybody in all groups. They are not gone yet when this returns.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        self.v2
            .iter()
            .chain(&self.v1)
            .try_for_each(|dir| tree::kill_all(dir))
    }

    /// Nobody lives in any group.
    pub fn is_empty(&self) -> bool {
        self.dirs().all(|dir| tree::is_empty(dir))
    }

    /// Removes all groups and puts us back where we came from. What it returns could not be
    /// removed, because somebody still lives in it: try again.
    pub fn remove_all(&mut self) -> Vec<PathBuf> {
        let mut left = Vec::new();
        self.dirs().for_each(|dir| tree::remove_all(dir, &mut left));
        if left.is_empty()
            && let Some(own) = self.divided.take()
        {
            undivide(&own, self.pid);
        }
        left
    }

    /// What holds a cap.
    pub fn caps(&self) -> CapMechanism {
        match self.memory.filter(|_| self.trial.cap) {
            Some(Version::V1) => CapMechanism::CgroupV1,
            Some(Version::V2) => CapMechanism::CgroupV2,
            None => CapMechanism::Rlimit,
        }
    }

    /// Why no group holds a cap, if none does.
    pub fn obstacle(&self) -> Option<&Obstacle> {
        self.obstacle.as_ref()
    }

    /// What was tried and held.
    pub fn trial(&self) -> Trial {
        self.trial
    }

    /// Makes our folder where memory can be limited.
    fn make(&mut self, place: &Place, name: &str) -> Result<(), CgroupError> {
        if place.version == Version::V1 {
            let dir = self.make_folder(&place.own, name)?;
            v1::make_hierarchical(&dir)?;
            let calls = v1::Calls::watch(&dir).ok();
            self.calls = calls.zip(v1::Calls::watch(&place.own).ok());
            self.v1 = Some(dir);
        } else {
            let base = match divide(&place.own, self.pid) {
                Ok(divided) => {
                    self.divided = divided;
                    place.own.clone()
                }
                Err(error) => beside(place).ok_or(error)?,
            };
            let dir = self.make_folder(&base, name)?;
            self.v2 = Some(dir.clone());
            files::write(&dir.join("cgroup.subtree_control"), "+memory")?;
        }
        self.memory = Some(place.version);
        Ok(())
    }

    fn make_folder(&mut self, base: &std::path::Path, name: &str) -> Result<PathBuf, CgroupError> {
        let (dir, lock) = owner::make(base, name, self.pid)?;
        self.locks.extend(lock);
        Ok(dir)
    }

    /// Descriptors that stay open for a successor.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.locks.iter().map(|lock| lock.as_raw_fd())
    }

    fn try_out(&mut self) -> Trial {
        let mut trial = Trial::default();
        let Ok(mut group) = self.leaf("trial") else {
            return trial;
        };
        // No machine has so much, so nobody is hurt.
        let huge = Bytes(1 << 50);
        let cap = group.set_cap(Some(huge), Some(Bytes::ZERO));
        if self.memory.is_some()
            && let Err(error) = &cap
        {
            self.obstacle = Some(Obstacle {
                why: error.to_string(),
                how: "a kernel with the memory controller is needed".to_owned(),
            });
        }
        trial.cap = cap.is_ok();
        trial.swap = trial.cap
            && group
                .dirs()
                .any(|dir| dir.join("memory.swap.max").exists() || dir.join(MEMSW).exists());
        trial.budget = self.set_budget(Some(huge)).is_ok() && self.set_budget(None).is_ok();
        trial.wire = group.arm(Bytes::mib(1)).is_ok();
        trial.kill = group.dirs().any(|dir| dir.join("cgroup.kill").exists());
        // It is empty; should it stay nevertheless, it goes with all others in the end.
        let _ = group.remove();
        trial
    }

    fn count(&self, group: &Group) -> Result<Counts, CgroupError> {
        let Some(memory) = &group.memory else {
            return Ok(Counts::default());
        };
        let ooms = memory.ooms()?;
        let (budget, above) = match (&self.calls, &self.v2, self.memory) {
            (Some((budget, above)), ..) => (budget.count(), above.count()),
            (None, Some(dir), Some(Version::V2)) => (v2::calls(dir)?, 0),
            _ => (0, 0),
        };
        Ok(Counts {
            kills: ooms.kills,
            own: ooms.calls,
            budget,
            above,
        })
    }

    pub(super) fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        self.v1.iter().chain(&self.v2)
    }
}

const MEMSW: &str = "memory.memsw.limit_in_bytes";

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    const EVENTS: &str = "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n";

    fn write(root: &Path, files: &[&str], text: &str) {
        for name in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    /// A version 2 tree in which the groups are there already, for no file system but the kernel's
    /// fills a new folder.
    fn tree() -> (tempfile::TempDir, Found) {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("own");
        write(&own, &["cgroup.type"], "domain\n");
        let service = own.join("supervise-web.42");
        write(
            &own,
            &["cgroup.subtree_control", "supervisor/cgroup.procs"],
            "",
        );
        write(&service, &["cgroup.subtree_control", "cgroup.kill"], "");
        write(&service, &["memory.max"], "max\n");
        write(&service, &["memory.events.local"], EVENTS);
        for leaf in ["trial", "w1"].map(|name| service.join(name)) {
            write(&leaf, &["cgroup.procs", "cgroup.kill"], "");
            write(
                &leaf,
                &["memory.max", "memory.high", "memory.swap.max"],
                "max\n",
            );
            write(&leaf, &["memory.current", "memory.oom.group"], "0\n");
            write(&leaf, &["memory.events", "memory.events.local"], EVENTS);
        }
        let found = Found {
            memory: Some(Place {
                version: Version::V2,
                top: root.path().to_owned(),
                own,
            }),
            ..Found::default()
        };
        (root, found)
    }

    #[test]
    fn in_version_2_all_is_written_in_its_words() {
        let (root, found) = tree();
        let now = |name: &str| fs::read_to_string(root.path().join("own").join(name)).unwrap();
        let mut groups = Groups::create(&found, "web", 42);
        assert_eq!(groups.obstacle(), None);
        assert_eq!(groups.caps(), CapMechanism::CgroupV2);
        let all = Trial {
            cap: true,
            swap: true,
            budget: true,
            wire: true,
            kill: true,
        };
        assert_eq!(groups.trial(), all);
        assert_eq!(now("supervisor/cgroup.procs"), "42");
        assert_eq!(now("cgroup.subtree_control"), "+memory");
        assert_eq!(now("supervise-web.42/cgroup.subtree_control"), "+memory");

        groups.set_budget(Some(Bytes::mib(900))).unwrap();
        assert_eq!(now("supervise-web.42/memory.max"), "943718400");
        groups.set_budget(None).unwrap();
        assert_eq!(now("supervise-web.42/memory.max"), "max");

        let mut group = groups.leaf("w1").unwrap();
        group.add(77).unwrap();
        assert_eq!(now("supervise-web.42/w1/cgroup.procs"), "77");
        let mut pids = Vec::new();
        group.pids(&mut pids).unwrap();
        assert_eq!(pids, [77]);
        group.kill().unwrap();
        assert_eq!(now("supervise-web.42/w1/cgroup.kill"), "1");
        groups.kill_all().unwrap();
        assert_eq!(now("supervise-web.42/cgroup.kill"), "1");
    }

    #[test]
    fn whose_limit_it_was_is_read_where_each_is_counted() {
        let (root, found) = tree();
        let service = root.path().join("own/supervise-web.42");
        let groups = Groups::create(&found, "web", 42);
        let mut group = groups.leaf("w1").unwrap();
        let kills = |count: u32| {
            let text = EVENTS.replace("oom_kill 0", &format!("oom_kill {count}"));
            write(&service, &["w1/memory.events"], &text);
        };
        let called = EVENTS.replace("oom 0", "oom 1");
        assert_eq!(groups.oom(&mut group), Oom::No);
        kills(1);
        write(&service, &["w1/memory.events.local"], &called);
        assert_eq!(groups.oom(&mut group), Oom::Cap);
        kills(2);
        write(&service, &["memory.events.local"], &called);
        assert_eq!(groups.oom(&mut group), Oom::Budget);
        kills(3);
        assert_eq!(groups.oom(&mut group), Oom::Elsewhere);
    }

    #[test]
    fn without_any_hierarchy_a_group_is_only_a_name() {
        let obstacle = Obstacle {
            why: "nothing is mounted".to_owned(),
            how: "mount it".to_owned(),
        };
        let found = Found {
            obstacle: Some(obstacle),
            ..Found::default()
        };
        let mut groups = Groups::create(&found, "web", 42);
        assert_eq!(groups.caps(), CapMechanism::Rlimit);
        assert_eq!(groups.trial(), Trial::default());
        assert!(groups.obstacle().is_some());
        groups.set_budget(Some(Bytes::mib(1))).unwrap_err();

        let mut group = groups.leaf("w1").unwrap();
        assert!(!group.holds_processes() && group.is_empty());
        group.add(77).unwrap();
        group.kill().unwrap();
        assert!(group.usage().is_none() && group.wire_fd().is_none());
        let error = group.set_cap(None, None).unwrap_err().to_string();
        assert!(error.contains("of the group w1"), "{error}");
        group.remove().unwrap();
        assert!(groups.remove_all().is_empty());
    }
}
