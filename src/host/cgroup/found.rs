//! Which hierarchies of groups are here, where we are in them, and what they leave us.
//!
//! `/proc/self/cgroup` says where we are in each hierarchy, `/proc/self/mountinfo` where which part
//! of it is mounted (cgroups(7), proc(5)); only both together name a folder.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
};

use nix::unistd::{AccessFlags, eaccess};
use serde::{Deserialize, Serialize};

use super::files;
use crate::{
    host::procfs::{Proc, ProcError},
    units::Bytes,
};

/// A language of control groups.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Version {
    /// One hierarchy for each controller.
    V1,
    /// One hierarchy for all.
    V2,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "cgroup v1",
            Self::V2 => "cgroup v2",
        })
    }
}

/// Where we are in a hierarchy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// Its language.
    pub version: Version,
    /// The highest group of it that can be seen.
    pub top: PathBuf,
    /// The group we were in when this was found out.
    pub own: PathBuf,
}

/// Why something cannot be had, and how to get it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Obstacle {
    /// What is in the way.
    pub why: String,
    /// What an operator can do.
    pub how: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.why, self.how)
    }
}

/// What there is.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Where groups with limits on memory may be made.
    pub memory: Option<Place>,
    /// A version 2 hierarchy beside it, for killing only. `None` if `memory` is one itself.
    pub tree: Option<Place>,
    /// Why there is no `memory`.
    pub obstacle: Option<Obstacle>,
    /// Every hierarchy that may hold a limit for us, writable or not.
    pub(super) limits: Vec<Place>,
}

impl Found {
    /// Looks around.
    pub fn discover(proc: &Proc) -> Result<Self, ProcError> {
        let groups = proc.text("self/cgroup")?;
        let mounts = proc.text("self/mountinfo")?;
        let mut found = Self::default();
        let mut obstacles = Vec::new();
        for mount in mounts.lines().filter_map(parse_mount) {
            match mount.place(&groups) {
                Ok(Some(place)) => found.add(place, mount.is_read_only, &mut obstacles),
                Ok(None) => {}
                Err(obstacle) => obstacles.push(obstacle),
            }
        }
        if found.memory.is_none() {
            let none = || Obstacle {
                why: "the memory controller is in no hierarchy that is mounted here".to_owned(),
                how: "mount cgroup2 at /sys/fs/cgroup, with `cgroup_enable=memory` on the \
                      kernel's command line where it is off"
                    .to_owned(),
            };
            found.obstacle = Some(obstacles.pop().unwrap_or_else(none));
        }
        Ok(found)
    }

    /// What this service may have: the smallest limit on its way up, and never more than the
    /// machine has. `memory.high` counts as a limit: above it one only crawls.
    pub fn available(&self, proc: &Proc) -> Result<Bytes, ProcError> {
        let machine = proc.mem_total()?;
        let limits = self.limits.iter().flat_map(Place::limits);
        Ok(limits.fold(machine, Ord::min))
    }

    fn add(&mut self, place: Place, is_read_only: bool, obstacles: &mut Vec<Obstacle>) {
        let has_memory = place.has_memory();
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
    /// Our group and those above it, nearest first.
    pub(super) fn path(&self) -> impl Iterator<Item = &Path> {
        let top = &self.top;
        self.own
            .ancestors()
            .take_while(move |dir| dir.starts_with(top))
    }

    /// The memory controller works in this hierarchy.
    fn has_memory(&self) -> bool {
        match self.version {
            Version::V1 => true,
            Version::V2 => self.path().any(controls_memory),
        }
    }

    /// Groups may be made in our own one, or, where it is version 2, in one above.
    fn writable(&self, is_read_only: bool) -> Result<(), Obstacle> {
        if is_read_only {
            return Err(Obstacle {
                why: format!("{} at {} is read-only", self.version, self.top.display()),
                how: "give the container its own writable one, with cgroup v2: `docker run \
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
                "the {} group {} is not ours to divide",
                self.version,
                self.own.display()
            ),
            how: "set `Delegate=yes` in the unit, or start with `systemd-run --user --scope \
                  -p Delegate=yes supervise …`, or as root"
                .to_owned(),
        })
    }

    /// The limits on memory on our way up.
    fn limits(&self) -> Vec<Bytes> {
        if self.version == Version::V1 {
            // The smallest on the way up, those above what is mounted here included.
            let path = self.own.join("memory.stat");
            let smallest = files::entry_of(&path, "hierarchical_memory_limit");
            return smallest.into_iter().map(Bytes).collect();
        }
        self.path().flat_map(limits_of).collect()
    }
}

/// The limits of one version 2 group. The root has none, nor has a group without the controller.
pub(super) fn limits_of(dir: &Path) -> impl Iterator<Item = Bytes> {
    let files = [dir.join("memory.max"), dir.join("memory.high")];
    files
        .into_iter()
        .filter_map(|file| files::limit(&file).ok().flatten())
}

/// The memory controller may be handed on from this version 2 group.
fn controls_memory(dir: &Path) -> bool {
    files::has_word(&dir.join("cgroup.controllers"), "memory")
}

/// A line of `mountinfo` that is about control groups.
struct Mount {
    version: Version,
    /// The group that is mounted, as seen from our namespace.
    root: PathBuf,
    point: PathBuf,
    is_read_only: bool,
}

impl Mount {
    /// Where we are in it; `Ok(None)` if that folder is not there.
    fn place(&self, groups: &str) -> Result<Option<Place>, Obstacle> {
        let Some(group) = own_group(groups, self.version) else {
            return Ok(None);
        };
        let climbs = |path: &Path| path.components().any(|part| part == Component::ParentDir);
        let below = group.strip_prefix(&self.root);
        let (Ok(below), false, false) = (below, climbs(&self.root), climbs(&group)) else {
            return Err(Obstacle {
                why: format!(
                    "{} at {} shows {}, and we are in {}: it was mounted for another namespace",
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

/// Our group in the hierarchy of version 2, or of version 1's memory controller.
fn own_group(groups: &str, version: Version) -> Option<PathBuf> {
    groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let is_it = match version {
            Version::V1 => controllers.split(',').any(|name| name == "memory"),
            Version::V2 => controllers.is_empty(),
        };
        is_it.then(|| PathBuf::from(path))
    })
}

/// `36 35 98:0 /root /point rw,noatime shared:1 - cgroup2 cgroup2 rw,nsdelegate` (proc(5)).
fn parse_mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let (root, point, options) = (fields.next()?, fields.next()?, fields.next()?);
    let mut fields = after.split(' ');
    let (kind, super_options) = (fields.next()?, fields.nth(1)?);
    let has = |options: &str, name| options.split(',').any(|option| option == name);
    let version = match kind {
        "cgroup2" => Version::V2,
        "cgroup" if has(super_options, "memory") => Version::V1,
        _ => return None,
    };
    Some(Mount {
        version,
        root: unescape(root).into(),
        point: unescape(point).into(),
        is_read_only: has(options, "ro") || has(super_options, "ro"),
    })
}

/// Blanks and the like are written as `\040` there.
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

    /// A machine whose `/sys/fs/cgroup` is below a temporary folder.
    struct Machine {
        root: tempfile::TempDir,
    }

    impl Machine {
        /// `ROOT` in the mounts becomes the folder; it holds these files.
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

        /// The group's version and its folder below the machine's.
        fn own(&self, place: Option<&Place>) -> Option<(Version, String)> {
            let place = place?;
            let own = place.own.strip_prefix(self.root.path()).unwrap();
            Some((place.version, own.to_str().unwrap().to_owned()))
        }
    }

    /// The lines of a hybrid machine, as they are.
    const HYBRID: &str = "\
31 23 0:28 / ROOT rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / ROOT/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / ROOT/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / ROOT/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / ROOT/unified rw,relatime - cgroup2 cgroup2 rw
";
    const STAT: &str = "cache 0\nhierarchical_memory_limit 1073741824\ntotal_rss 0\n";

    #[test]
    fn a_hybrid_machine_limits_by_version_1_and_kills_by_version_2() {
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

    /// systemd's machine; blanks in a path are escaped.
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
    fn a_unified_machine_limits_and_kills_by_version_2() {
        let machine = unified(&[]);
        let found = machine.found();
        let own = "my groups/system.slice/web.service".to_owned();
        assert_eq!(machine.own(found.memory.as_ref()), Some((Version::V2, own)));
        assert_eq!(found.tree, None);
    }

    #[test]
    fn what_we_may_have_is_the_smallest_limit_on_the_way_up() {
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
    fn a_read_only_mount_still_tells_its_limit() {
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
    fn a_mount_of_another_namespace_is_named_as_such() {
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
    fn a_machine_without_the_controller_says_so() {
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
        assert!(found.obstacle.unwrap().why.contains("no hierarchy"));
        assert_eq!(machine.available(), Bytes::mib(2048));
    }
}
