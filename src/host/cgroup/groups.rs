//! The service's own part of the hierarchies: its budget, and the groups of its workers.
//!
//! `OWN/supervise-NAME.PID/` contains the workers' groups and has the budget; `OWN` is the group
//! that we were started in. We are not in it. In version 2 a group with processes cannot enable
//! controllers for its children (`cgroup-v2.rst`, "No Internal Process Constraint"), so we move to
//! `OWN/supervisor`.

use std::{
    fs::File,
    os::fd::{AsRawFd as _, RawFd},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    CgroupError, Found, Group, Obstacle, Place, Pressure,
    backend::{Backend, Base, Calls},
    divide::{enable_controller, undivide},
    files,
    group::Folder,
    oom::{Counts, after_one, judge},
    owner, tree,
};
use crate::{
    supervisor::input::{CapMechanism, Contents, Oom},
    units::Bytes,
};

/// All groups of one service.
#[derive(Debug)]
pub struct Groups {
    /// Our directories: the one with the memory controller, and the one in the unified hierarchy.
    pub(super) folders: Vec<Folder>,
    /// Counts the calls of the OOM killer by our budget, and by a limit above it.
    pub(super) calls: Option<Box<dyn Calls>>,
    /// The group that we left for a leaf of it.
    pub(super) divided: Option<PathBuf>,
    pub(super) pid: i32,
    pub(super) obstacle: Option<Obstacle>,
    pub(super) trial: Trial,
    /// The locks on our directories, which show that they are in use.
    pub(super) locks: Vec<File>,
}

/// Which features worked in a trial.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Trial {
    /// A cap on one group.
    pub cap: bool,
    /// Together with the cap, how much of it may be swap.
    pub swap: bool,
    /// A cap on all groups together.
    pub budget: bool,
    /// A threshold.
    pub threshold: bool,
    /// Killing a whole group at once.
    pub kill: bool,
}

impl Groups {
    /// Makes the service's groups and tries them out. An unavailable feature is left out, and
    /// [`Groups::obstacle`] has the reason. Call it before anything else is started: in version 2
    /// our process must be the only one in its group.
    pub fn create(found: &Found, name: &str, pid: i32) -> Self {
        let mut groups = Self {
            folders: Vec::new(),
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
            groups.obstacle = Some(Obstacle {
                why: error.to_string(),
                how: "no other process may be in our group: start with `systemd-run --scope \
                      -p Delegate=yes supervise …`, or in a unit with `Delegate=yes`"
                    .to_owned(),
            });
        }
        if groups.unified().is_none()
            && let Some(place) = found.tree.as_ref().or(found.memory.as_ref())
            && place.version.backend().is_unified()
            // Without it, a tree is killed by one signal for each process, so this is not an error.
            && let Ok(dir) = groups.make_folder(&place.own, name)
        {
            groups.folders.push(Folder::new(place.version, dir));
        }
        groups.trial = groups.try_out();
        groups
    }

    /// Our directory with the memory controller, and its backend.
    pub(super) fn memory(&self) -> Option<(&'static dyn Backend, &Path)> {
        let folder = self.folders.iter().find(|folder| folder.has_memory)?;
        Some((folder.version.backend(), &folder.dir))
    }

    /// Our directory in a unified hierarchy.
    fn unified(&self) -> Option<&Path> {
        Folder::unified(&self.folders)
    }

    /// Makes the kernel limit all groups together; `None` removes the limit.
    pub fn set_budget(&mut self, budget: Option<Bytes>) -> Result<(), CgroupError> {
        match self.memory() {
            Some((backend, dir)) => backend.set_budget(dir, budget),
            None => Err(CgroupError::NoMemory {
                name: "of the service".to_owned(),
            }),
        }
    }

    /// The memory of all groups together that cannot be taken back: anonymous pages, and shared
    /// memory including the files of a tmpfs. Page cache is not counted.
    pub fn held(&self) -> Option<Bytes> {
        let (backend, dir) = self.memory()?;
        backend.held(dir)
    }

    /// The part of it that is not memory of a single process.
    pub fn contents(&self) -> Option<Contents> {
        let (backend, dir) = self.memory()?;
        backend.contents(dir)
    }

    /// Watches memory pressure on all groups together, if the kernel reports it for groups.
    pub fn watch_pressure(&self) -> Option<Pressure> {
        Pressure::watch(&self.unified()?.join("memory.pressure")).ok()
    }

    /// Enables a further controller for the groups of workers. This needs version 2, with its one
    /// tree for all controllers.
    pub fn enable(&self, controller: &str) -> Result<(), CgroupError> {
        let none = || {
            CgroupError::NoPlace(Obstacle {
                why: "the service has no cgroup v2 group".to_owned(),
                how: "it needs cgroup v2 and a delegated group".to_owned(),
            })
        };
        let dir = self.unified().ok_or_else(none)?;
        let above = dir.parent().ok_or_else(none)?;
        [above, dir]
            .iter()
            .try_for_each(|dir| enable_controller(dir, controller))
    }

    /// Sets the share of the processor for all groups together, relative to their neighbours.
    pub fn set_cpu_weight(&self, weight: u64) -> Result<(), CgroupError> {
        self.enable("cpu")?;
        let dir = self.unified();
        let mut files = dir.into_iter().map(|dir| dir.join("cpu.weight"));
        files.try_for_each(|file| files::write(&file, &weight.to_string()))
    }

    /// Makes the group of that name, or uses the existing one.
    pub fn leaf(&self, name: &str) -> Result<Group, CgroupError> {
        let make = |service: &Folder| {
            let dir = service.dir.join(name);
            files::make(&dir).map(|()| Folder {
                dir,
                ..service.clone()
            })
        };
        let folders: Vec<_> = self.folders.iter().map(make).collect::<Result<_, _>>()?;
        let open = |folder: &Folder| folder.version.backend().open(&folder.dir);
        let with_memory = folders.iter().find(|folder| folder.has_memory);
        let memory = with_memory.map(open).transpose()?;
        // Fails early if there is no such group.
        if let Some(dir) = Folder::unified(&folders) {
            files::read(&dir.join("cgroup.procs"))?;
        }
        let mut group = Group {
            name: name.to_owned(),
            folders,
            memory,
            seen: Counts::default(),
        };
        group.seen = self.count(&group).unwrap_or_default();
        Ok(group)
    }

    /// Like [`Groups::oom`], but a later call still gets the same answer.
    pub fn oom_so_far(&self, group: &Group) -> Oom {
        let now = self.count(group).unwrap_or(group.seen);
        judge(group.seen, now, self.nests_calls())
    }

    /// Whether and why the OOM killer killed a process in this group, for an end that was not
    /// checked yet.
    pub fn oom(&self, group: &mut Group) -> Oom {
        let now = self.count(group).unwrap_or(group.seen);
        let oom = judge(group.seen, now, self.nests_calls());
        group.seen = after_one(group.seen, now);
        oom
    }

    fn nests_calls(&self) -> bool {
        let memory = self.memory();
        memory.is_some_and(|(backend, _)| backend.nests_calls())
    }

    /// Sends SIGKILL to all processes in all groups. They may still be ending when this returns.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        // The unified one first, because it can kill all at once.
        let mut dirs = self.folders.iter().rev().map(|folder| &folder.dir);
        dirs.try_for_each(|dir| tree::kill_all(dir))
    }

    /// Whether no process is in any group.
    pub fn is_empty(&self) -> bool {
        self.dirs().all(|dir| tree::is_empty(dir))
    }

    /// Removes all groups, and moves us back to our first group. Returns the groups that could not
    /// be removed because a process is in them: try again.
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

    /// The mechanism that enforces a cap.
    pub fn caps(&self) -> CapMechanism {
        let memory = self.memory().filter(|_| self.trial.cap);
        memory.map_or(CapMechanism::Rlimit, |(backend, _)| backend.mechanism())
    }

    /// The files of a cap and of a threshold, for operators; empty if no group enforces a cap.
    pub fn limit_files(&self) -> [&'static str; 2] {
        let memory = self.memory().filter(|_| self.trial.cap);
        memory.map_or([""; 2], |(backend, _)| backend.limit_files())
    }

    /// Why no group enforces a cap, if none does.
    pub fn obstacle(&self) -> Option<&Obstacle> {
        self.obstacle.as_ref()
    }

    /// Which features worked in the trial.
    pub fn trial(&self) -> Trial {
        self.trial
    }

    /// Makes our directory in the hierarchy with the memory controller.
    fn make(&mut self, place: &Place, name: &str) -> Result<(), CgroupError> {
        let backend = place.version.backend();
        let Base { dir, divided } = backend.make_base(place, self.pid)?;
        self.divided = divided;
        let dir = self.make_folder(&dir, name)?;
        let prepared = backend.prepare(&dir);
        let has_memory = prepared.is_ok();
        // Without the controller it is still useful to kill.
        if has_memory || backend.is_unified() {
            self.calls = backend.watch_calls(&dir).filter(|_| has_memory);
            self.folders.push(Folder {
                version: place.version,
                dir,
                has_memory,
            });
        }
        prepared
    }

    fn make_folder(&mut self, base: &Path, name: &str) -> Result<PathBuf, CgroupError> {
        let (dir, lock) = owner::make(base, name, self.pid)?;
        self.locks.extend(lock);
        Ok(dir)
    }

    /// The descriptors that stay open for the new binary.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.locks.iter().map(|lock| lock.as_raw_fd())
    }

    fn try_out(&mut self) -> Trial {
        let mut trial = Trial::default();
        let Ok(mut group) = self.leaf("trial") else {
            return trial;
        };
        // A limit far above the memory of any machine, so that it has no effect.
        let huge = Bytes(1 << 50);
        let cap = group.set_cap(Some(huge), Some(Bytes::ZERO));
        if self.memory().is_some()
            && let Err(error) = &cap
        {
            self.obstacle = Some(Obstacle {
                why: error.to_string(),
                how: "a kernel with the memory controller is needed".to_owned(),
            });
        }
        trial.cap = cap.is_ok();
        trial.swap = trial.cap && group.counts_swap();
        trial.budget = self.set_budget(Some(huge)).is_ok() && self.set_budget(None).is_ok();
        trial.threshold = group.set_threshold(Bytes::mib(1)).is_ok();
        trial.kill = group.dirs().any(|dir| dir.join("cgroup.kill").exists());
        // The group is empty. If it stays nevertheless, it is removed with all others at the end.
        let _ = group.remove();
        trial
    }

    fn count(&self, group: &Group) -> Result<Counts, CgroupError> {
        let Some(memory) = &group.memory else {
            return Ok(Counts::default());
        };
        let ooms = memory.ooms()?;
        let calls = self.calls.as_ref().map(|calls| calls.counts());
        let (budget, above) = calls.transpose()?.unwrap_or_default();
        Ok(Counts {
            kills: ooms.kills,
            own: ooms.calls,
            budget,
            above,
        })
    }

    pub(super) fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        self.folders.iter().map(|folder| &folder.dir)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::Version, *};

    const EVENTS: &str = "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n";

    fn write(root: &Path, files: &[&str], text: &str) {
        for name in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    /// A version 2 tree in which the groups exist already, because only the kernel's file system
    /// fills a new directory.
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
    fn limits_and_kills_are_written_to_the_files_of_version_2() {
        let (root, found) = tree();
        let now = |name: &str| fs::read_to_string(root.path().join("own").join(name)).unwrap();
        let mut groups = Groups::create(&found, "web", 42);
        assert_eq!(groups.obstacle(), None);
        assert_eq!(groups.caps(), CapMechanism::CgroupV2);
        let all = Trial {
            cap: true,
            swap: true,
            budget: true,
            threshold: true,
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
    fn an_oom_is_attributed_to_the_cap_the_budget_or_a_limit_above() {
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
    fn a_group_without_a_hierarchy_does_nothing() {
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
        assert!(group.usage().is_none() && group.threshold_fd().is_none());
        let error = group.set_cap(None, None).unwrap_err().to_string();
        assert!(error.contains("of the group w1"), "{error}");
        group.remove().unwrap();
        assert!(groups.remove_all().is_empty());
    }
}
