//! Which hierarchies of groups this machine has, where we are in them, and what we may do there.
//!
//! `/proc/self/cgroup` has our group in each hierarchy, and `/proc/self/mountinfo` has the mounted
//! part of each hierarchy (cgroups(7), proc(5)). Only both together give a directory.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
};

use nix::unistd::{AccessFlags, eaccess};
use serde::{Deserialize, Serialize};

use super::Version;
use crate::{
    host::memory::procfs::{Proc, ProcError},
    units::Bytes,
};

/// Our place in a hierarchy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// The version of the hierarchy.
    pub version: Version,
    /// The highest group that we can see.
    pub top: PathBuf,
    /// The group we were in when the place was found.
    pub own: PathBuf,
}

/// Why something is not available, and what to do about it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Obstacle {
    /// The reason.
    pub why: String,
    /// What an operator can do.
    pub how: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.why, self.how)
    }
}

/// The hierarchies that were found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The place where groups with memory limits can be made.
    pub memory: Option<Place>,
    /// A version 2 hierarchy in addition, for killing only. `None` if `memory` is version 2 itself.
    pub tree: Option<Place>,
    /// Why there is no `memory`.
    pub obstacle: Option<Obstacle>,
    /// Every hierarchy that may have a limit for us, writable or not.
    pub(super) limits: Vec<Place>,
}

impl Found {
    /// Finds the hierarchies.
    pub fn discover(proc: &Proc) -> Result<Self, ProcError> {
        let groups = proc.text("self/cgroup")?;
        let mounts = proc.text("self/mountinfo")?;
        let mut found = Self::default();
        let mut obstacles = Vec::new();
        for mount in mounts.lines().filter_map(parse_mount) {
            match mount.place(&groups) {
                Ok(Some(place)) => found.add_place(place, mount.is_read_only, &mut obstacles),
                Ok(None) => {}
                Err(obstacle) => obstacles.push(obstacle),
            }
        }
        if found.memory.is_none() {
            let none = || Obstacle {
                why: "no mounted cgroup hierarchy has the memory controller".to_owned(),
                how: "mount cgroup2 at /sys/fs/cgroup, with `cgroup_enable=memory` on the \
                      kernel's command line if it is off"
                    .to_owned(),
            };
            found.obstacle = Some(obstacles.pop().unwrap_or_else(none));
        }
        Ok(found)
    }

    /// The memory available to this service: the smallest limit on the path of its group, and never
    /// more than the machine has. `memory.high` counts as a limit, because the kernel throttles a
    /// group above it.
    pub fn available(&self, proc: &Proc) -> Result<Bytes, ProcError> {
        let machine = proc.mem_total()?;
        let limits = self
            .limits
            .iter()
            .flat_map(|place| place.version.backend().limits(place));
        Ok(limits.fold(machine, Ord::min))
    }

    fn add_place(&mut self, place: Place, is_read_only: bool, obstacles: &mut Vec<Obstacle>) {
        let has_memory = place.version.backend().has_memory(&place);
        // A hierarchy may be mounted twice.
        if has_memory && !self.limits.contains(&place) {
            self.limits.push(place.clone());
        }
        match place.writable(is_read_only) {
            Ok(()) if has_memory => self.memory = Some(place),
            Ok(()) => self.tree = Some(place),
            Err(obstacle) if has_memory => obstacles.push(obstacle),
            Err(_) => {}
        }
    }
}

impl Place {
    /// Our group and the groups above it, the nearest first.
    pub(super) fn path(&self) -> impl Iterator<Item = &Path> {
        let top = &self.top;
        self.own
            .ancestors()
            .take_while(move |dir| dir.starts_with(top))
    }

    /// Whether groups can be made in our own group, or, in version 2, in a group above it.
    fn writable(&self, is_read_only: bool) -> Result<(), Obstacle> {
        if is_read_only {
            return Err(Obstacle {
                why: format!("{} at {} is read-only", self.version, self.top.display()),
                how: "give the container its own writable hierarchy, with cgroup v2: `docker run \
                      --security-opt writable-cgroups=true` (28 or later), `podman run \
                      --security-opt unmask=/sys/fs/cgroup`; in Kubernetes a runtime class of \
                      containerd 2.1 or later with `cgroup_writable = true`; or `--privileged` \
                      with `--cgroupns=private`"
                    .to_owned(),
            });
        }
        let is_ours = |dir: &Path| {
            [dir.to_owned(), dir.join("cgroup.procs")]
                .iter()
                .all(|path| eaccess(path, AccessFlags::W_OK).is_ok())
        };
        if is_ours(&self.own) {
            return Ok(());
        }
        Err(Obstacle {
            why: format!(
                "no permission to make groups in the {} group {}",
                self.version,
                self.own.display()
            ),
            how: "set `Delegate=yes` in the unit, or start with `systemd-run --user --scope \
                  -p Delegate=yes supervise …`, or as root"
                .to_owned(),
        })
    }
}

/// A line of `mountinfo` for control groups.
struct Mount {
    version: Version,
    /// The mounted group, as seen in our namespace.
    root: PathBuf,
    /// The directory where it is mounted.
    point: PathBuf,
    is_read_only: bool,
}

impl Mount {
    /// Our place in it; `Ok(None)` if that directory does not exist.
    fn place(&self, groups: &str) -> Result<Option<Place>, Obstacle> {
        let Some(group) = own_group(groups, self.version) else {
            return Ok(None);
        };
        let climbs = |path: &Path| path.components().any(|part| part == Component::ParentDir);
        let below = group.strip_prefix(&self.root);
        let (Ok(below), false, false) = (below, climbs(&self.root), climbs(&group)) else {
            return Err(Obstacle {
                why: format!(
                    "{} at {} shows {}, but our group is {}: it was mounted for another namespace",
                    self.version,
                    self.point.display(),
                    self.root.display(),
                    group.display()
                ),
                how: "mount /sys/fs/cgroup inside the container's own cgroup namespace \
                      (`--cgroupns=private`)"
                    .to_owned(),
            });
        };
        let own = below
            .components()
            .fold(self.point.clone(), |path, part| path.join(part));
        Ok(own.is_dir().then(|| Place {
            version: self.version,
            top: self.point.clone(),
            own,
        }))
    }
}

/// Our group in the hierarchy of this version that may have the memory controller.
fn own_group(groups: &str, version: Version) -> Option<PathBuf> {
    groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let is_it = version.backend().is_listed(controllers);
        is_it.then(|| PathBuf::from(path))
    })
}

/// Parses `36 35 98:0 /root /point rw,noatime shared:1 - cgroup2 cgroup2 rw,nsdelegate` (proc(5)).
fn parse_mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let (root, point, options) = (fields.next()?, fields.next()?, fields.next()?);
    let mut fields = after.split(' ');
    let (kind, super_options) = (fields.next()?, fields.nth(1)?);
    let has = |options: &str, name| options.split(',').any(|option| option == name);
    let version = Version::ALL
        .into_iter()
        .find(|version| version.backend().is_mounted(kind, super_options))?;
    Some(Mount {
        version,
        root: unescape(root).into(),
        point: unescape(point).into(),
        is_read_only: has(options, "ro") || has(super_options, "ro"),
    })
}

/// Decodes blanks and other characters, which are written as `\040` and the like.
fn unescape(text: &str) -> String {
    [
        (r"\040", " "),
        (r"\011", "\t"),
        (r"\012", "\n"),
        (r"\134", "\\"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (code, plain)| {
        text.replace(code, plain)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A machine whose `/sys/fs/cgroup` is below a temporary directory.
    struct Machine {
        root: tempfile::TempDir,
    }

    impl Machine {
        /// `ROOT` in the mounts stands for the temporary directory, which has these files.
        fn new(groups: &str, mounts: &str, files: &[(&str, &str)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            let mounts = mounts.replace("ROOT", root.path().to_str().unwrap());
            let machine = Self { root };
            machine.write("proc/self/cgroup", groups);
            machine.write("proc/self/mountinfo", &mounts);
            machine.write("proc/meminfo", "MemTotal:       2097152 kB\n");
            files
                .iter()
                .for_each(|(name, text)| machine.write(name, text));
            machine
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn proc(&self) -> Proc {
            Proc::at(self.root.path().join("proc"))
        }

        fn found(&self) -> Found {
            Found::discover(&self.proc()).unwrap()
        }

        fn available(&self) -> Bytes {
            self.found().available(&self.proc()).unwrap()
        }

        /// The group's version, and its path below the temporary directory.
        fn own(&self, place: Option<&Place>) -> Option<(Version, String)> {
            let place = place?;
            let own = place.own.strip_prefix(self.root.path()).unwrap();
            Some((place.version, own.to_str().unwrap().to_owned()))
        }
    }

    /// The lines of a hybrid machine.
    const HYBRID: &str = "\
31 23 0:28 / ROOT rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / ROOT/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / ROOT/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / ROOT/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / ROOT/unified rw,relatime - cgroup2 cgroup2 rw
";
    const STAT: &str = "cache 0\nhierarchical_memory_limit 1073741824\ntotal_rss 0\n";

    #[test]
    fn a_hybrid_machine_limits_with_version_1_and_kills_with_version_2() {
        let machine = Machine::new(
            "9:name=systemd:/\n4:memory:/a/b\n1:cpu:/\n0::/c\n",
            HYBRID,
            &[
                ("memory/a/b/cgroup.procs", ""),
                ("memory/a/b/memory.stat", STAT),
                ("unified/c/cgroup.procs", ""),
                ("unified/c/cgroup.controllers", "hugetlb\n"),
            ],
        );
        let found = machine.found();
        let expected = Some((Version::V1, "memory/a/b".to_owned()));
        assert_eq!(machine.own(found.memory.as_ref()), expected);
        let expected = Some((Version::V2, "unified/c".to_owned()));
        assert_eq!(machine.own(found.tree.as_ref()), expected);
        assert_eq!(found.obstacle, None);
        assert_eq!(machine.available(), Bytes::mib(1024));
    }

    /// A machine with systemd; blanks in a path are escaped.
    const UNIFIED: &str = "26 23 0:23 / ROOT/my\\040groups rw,nosuid shared:4 - \
        cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";

    fn unified(limits: &[(&str, &str)]) -> Machine {
        let files = [
            ("my groups/cgroup.controllers", "cpu memory\n"),
            ("my groups/system.slice/cgroup.controllers", "cpu memory\n"),
            (
                "my groups/system.slice/web.service/cgroup.controllers",
                "memory\n",
            ),
            ("my groups/system.slice/web.service/cgroup.procs", ""),
            ("my groups/system.slice/memory.max", "max\n"),
            ("my groups/system.slice/web.service/memory.high", "max\n"),
        ];
        let machine = Machine::new("0::/system.slice/web.service\n", UNIFIED, &files);
        limits
            .iter()
            .for_each(|(name, text)| machine.write(name, text));
        machine
    }

    #[test]
    fn a_unified_machine_limits_and_kills_with_version_2() {
        let machine = unified(&[]);
        let found = machine.found();
        let own = "my groups/system.slice/web.service".to_owned();
        assert_eq!(machine.own(found.memory.as_ref()), Some((Version::V2, own)));
        assert_eq!(found.tree, None);
    }

    #[test]
    fn available_memory_is_the_smallest_limit_on_the_path() {
        assert_eq!(unified(&[]).available(), Bytes::mib(2048));
        let slice = ("my groups/system.slice/memory.max", "1073741824\n");
        assert_eq!(unified(&[slice]).available(), Bytes::mib(1024));
        let service = (
            "my groups/system.slice/web.service/memory.high",
            "536870912\n",
        );
        assert_eq!(unified(&[slice, service]).available(), Bytes::mib(512));
        let beyond = ("my groups/system.slice/memory.max", "99999999999\n");
        assert_eq!(unified(&[beyond]).available(), Bytes::mib(2048));
    }

    #[test]
    fn a_container_sees_its_own_part_as_the_top() {
        let mounts = "35 31 0:32 /docker/abc ROOT/memory rw - cgroup cgroup rw,memory\n";
        let machine = Machine::new(
            "4:memory:/docker/abc\n",
            mounts,
            &[("memory/cgroup.procs", ""), ("memory/memory.stat", STAT)],
        );
        let expected = Some((Version::V1, "memory".to_owned()));
        assert_eq!(machine.own(machine.found().memory.as_ref()), expected);
        assert_eq!(machine.available(), Bytes::mib(1024));
    }

    #[test]
    fn the_limit_of_a_read_only_mount_is_read() {
        let mounts = "35 31 0:32 / ROOT/groups ro,nosuid - cgroup2 cgroup rw\n";
        let machine = Machine::new(
            "0::/\n",
            mounts,
            &[
                ("groups/cgroup.controllers", "memory\n"),
                ("groups/memory.max", "536870912\n"),
            ],
        );
        let found = machine.found();
        assert_eq!((found.memory, found.tree), (None, None));
        let obstacle = found.obstacle.unwrap();
        assert!(obstacle.why.ends_with("/groups is read-only"), "{obstacle}");
        assert!(obstacle.how.contains("writable-cgroups"), "{obstacle}");
        assert_eq!(machine.available(), Bytes::mib(512));
    }

    #[test]
    fn a_mount_of_another_namespace_is_reported() {
        for (group, root) in [("/", "/.."), ("/../other", "/"), ("/a", "/b")] {
            let machine = Machine::new(
                &format!("0::{group}\n"),
                &format!("35 31 0:32 {root} ROOT/groups rw - cgroup2 cgroup rw\n"),
                &[("groups/cgroup.controllers", "memory\n")],
            );
            let obstacle = machine.found().obstacle.unwrap();
            assert!(obstacle.why.contains("another namespace"), "{obstacle}");
        }
    }

    #[test]
    fn a_machine_without_the_memory_controller_is_reported() {
        let machine = Machine::new(
            "0::/\n",
            "35 31 0:32 / ROOT/groups rw - cgroup2 cgroup rw\n",
            &[
                ("groups/cgroup.controllers", "cpu pids\n"),
                ("groups/cgroup.procs", ""),
            ],
        );
        let found = machine.found();
        let expected = Some((Version::V2, "groups".to_owned()));
        assert_eq!(machine.own(found.tree.as_ref()), expected);
        assert!(found.obstacle.unwrap().why.contains("memory controller"));
        assert_eq!(machine.available(), Bytes::mib(2048));
    }
}
