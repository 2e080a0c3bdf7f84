//! How near the groups above us are to their hard limits, and how often the kernel has killed
//! there.

use std::path::Path;

use super::{Found, Place, files};
use crate::units::Bytes;

/// The charge of one group, and its limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Charge {
    /// The charge without idle page cache, which the kernel takes back first. Kubernetes calls it
    /// the working set.
    pub used: Bytes,
    /// The limit. Above it the kernel kills.
    pub limit: Bytes,
}

impl Found {
    /// The group on our path that is nearest to its limit; `None` if no group has a limit.
    pub fn charge(&self) -> Option<Charge> {
        let charges = self.limits.iter().flat_map(Place::charges);
        charges.max_by(|one, other| one.used_share().total_cmp(&other.used_share()))
    }
}

/// Counts the kills of the OOM killer in the group that we were started in. It is used if we have
/// no groups of our own: in a container whose group cannot be divided.
#[derive(Debug, Default)]
pub struct ContainerKills {
    /// The number of kills that are accounted for.
    seen: u64,
    /// The number a second ago. A kill that was not taken by then was of another process.
    before: u64,
}

impl ContainerKills {
    /// Counts from now on.
    pub fn new(found: &Found) -> Self {
        let now = found.kills().unwrap_or(0);
        Self {
            seen: now,
            before: now,
        }
    }

    /// Takes one kill that was not taken yet. Call it for a process that was killed.
    pub fn take_one(&mut self, found: &Found) -> bool {
        let is_new = found.kills().is_some_and(|now| now > self.seen);
        self.seen += u64::from(is_new);
        is_new
    }

    /// Call it once a second.
    pub fn on_second(&mut self, found: &Found) {
        self.seen = self.seen.max(self.before);
        self.before = found.kills().unwrap_or(self.before);
    }
}

impl Found {
    fn kills(&self) -> Option<u64> {
        self.limits
            .iter()
            .find_map(|place| place.version.backend().kills(&place.own))
    }
}

impl Charge {
    fn used_share(&self) -> f64 {
        self.used.as_f64() / self.limit.as_f64().max(1.0)
    }
}

impl Place {
    fn charges(&self) -> Vec<Charge> {
        let charge = |dir: &Path| self.version.backend().charge(dir);
        self.path().filter_map(charge).collect()
    }
}

/// Reads the charge of a group. The names are those of the files of its limit and its charge, and
/// of the entry of `memory.stat` for idle page cache.
pub(super) fn charge_of(dir: &Path, [limit, usage, idle]: [&'static str; 3]) -> Option<Charge> {
    let limit = files::limit(&dir.join(limit)).ok().flatten()?;
    let used = files::number(&dir.join(usage)).ok()?;
    let idle = files::entry_of(&dir.join("memory.stat"), idle).unwrap_or(0);
    Some(Charge {
        used: Bytes(used).minus(Bytes(idle)),
        limit,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::{super::Version, *};

    fn found(version: Version, top: PathBuf) -> Found {
        let own = top.join("pod/app");
        Found {
            limits: vec![Place { version, top, own }],
            ..Found::default()
        }
    }

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn the_group_nearest_to_its_limit_counts_without_its_idle_cache() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("pod/app");
        let files = |limit, used, stat| {
            [
                ("memory.max", limit),
                ("memory.current", used),
                ("memory.stat", stat),
            ]
        };
        write(
            &own,
            &files("1000\n", "950\n", "anon 1\ninactive_file 450\n"),
        );
        write(&root.path().join("pod"), &files("4000\n", "3000\n", ""));
        write(root.path(), &files("max\n", "90000\n", ""));
        let charge = found(Version::V2, root.path().to_owned()).charge();
        let expected = Charge {
            used: Bytes(3000),
            limit: Bytes(4000),
        };
        assert_eq!(charge, Some(expected));
    }

    #[test]
    fn a_kill_is_taken_once_and_only_within_its_time() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("pod/app");
        let killed = |times: u64| {
            let text = format!("oom 9\noom_kill {times}\n");
            write(&own, &[("memory.events", &text)]);
        };
        killed(3);
        let found = found(Version::V2, root.path().to_owned());
        let mut kills = ContainerKills::new(&found);
        assert!(!kills.take_one(&found));
        killed(5);
        kills.on_second(&found);
        assert!(kills.take_one(&found));
        assert!(kills.take_one(&found));
        assert!(!kills.take_one(&found));
        killed(6);
        kills.on_second(&found);
        kills.on_second(&found);
        assert!(!kills.take_one(&found), "the kill of another process");
    }

    #[test]
    fn the_charge_of_version_1_is_read_from_its_files() {
        let root = tempfile::tempdir().unwrap();
        let files = [
            ("memory.limit_in_bytes", "1000\n"),
            ("memory.usage_in_bytes", "900\n"),
            ("memory.stat", "inactive_file 1\ntotal_inactive_file 300\n"),
        ];
        write(&root.path().join("pod/app"), &files);
        let unlimited = [("memory.limit_in_bytes", "9223372036854771712\n")];
        write(&root.path().join("pod"), &unlimited);
        let charge = found(Version::V1, root.path().to_owned()).charge();
        let expected = Charge {
            used: Bytes(600),
            limit: Bytes(1000),
        };
        assert_eq!(charge, Some(expected));
    }
}
