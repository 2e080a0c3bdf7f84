//! How near the groups above us are to the limits at which the kernel kills, and how often it did.

use std::path::Path;

use super::{Found, Place, Version, files};
use crate::units::Bytes;

/// What one group is charged with, and its limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Charge {
    /// Without page cache that the kernel takes back first: what Kubernetes calls the working set.
    pub used: Bytes,
    /// Above it the kernel kills.
    pub of: Bytes,
}

impl Found {
    /// The group on our way up that is nearest to its limit; `None` where none has one.
    pub fn charge(&self) -> Option<Charge> {
        let charges = self.limits.iter().flat_map(Place::charges);
        charges.max_by(|one, other| one.part().total_cmp(&other.part()))
    }
}

/// How often the OOM killer was in the group that we were started in, for those who have no groups
/// of their own: in a container that cannot be divided.
#[derive(Debug, Default)]
pub struct Kills {
    /// Ends up to here are accounted for.
    seen: u64,
    /// What it was a turn ago. A kill that nobody has asked about by then was somebody else's.
    before: u64,
}

impl Kills {
    /// From now on.
    pub fn new(found: &Found) -> Self {
        let now = found.kills().unwrap_or(0);
        Self {
            seen: now,
            before: now,
        }
    }

    /// There was one that nobody has taken yet: to be asked when a process was killed.
    pub fn take_one(&mut self, found: &Found) -> bool {
        let is_new = found.kills().is_some_and(|now| now > self.seen);
        self.seen += u64::from(is_new);
        is_new
    }

    /// A second is over.
    pub fn on_turn(&mut self, found: &Found) {
        self.seen = self.seen.max(self.before);
        self.before = found.kills().unwrap_or(self.before);
    }
}

impl Found {
    fn kills(&self) -> Option<u64> {
        self.limits.iter().find_map(|place| {
            let file = match place.version {
                Version::V1 => "memory.oom_control",
                Version::V2 => "memory.events",
            };
            files::entry_of(&place.own.join(file), "oom_kill").ok()
        })
    }
}

impl Charge {
    fn part(&self) -> f64 {
        self.used.as_f64() / self.of.as_f64().max(1.0)
    }
}

impl Place {
    fn charges(&self) -> Vec<Charge> {
        let of = |dir: &Path| match self.version {
            Version::V1 => charge_of(dir, &V1),
            Version::V2 => charge_of(dir, &V2),
        };
        self.path().filter_map(of).collect()
    }
}

/// The files and the entry of one language: the limit, the charge, and what of it is idle cache.
type Files = [&'static str; 3];
const V1: Files = [
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
];
const V2: Files = ["memory.max", "memory.current", "inactive_file"];

fn charge_of(dir: &Path, [limit, usage, idle]: &Files) -> Option<Charge> {
    let of = files::limit(&dir.join(limit)).ok().flatten()?;
    let used = files::number(&dir.join(usage)).ok()?;
    let idle = files::entry_of(&dir.join("memory.stat"), idle).unwrap_or(0);
    Some(Charge {
        used: Bytes(used).minus(Bytes(idle)),
        of,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

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
    fn the_group_nearest_to_its_limit_counts_less_its_idle_cache() {
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
            of: Bytes(4000),
        };
        assert_eq!(charge, Some(expected));
    }

    #[test]
    fn a_kill_is_taken_once_and_in_its_time() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("pod/app");
        let killed = |times: u64| {
            let text = format!("oom 9\noom_kill {times}\n");
            write(&own, &[("memory.events", &text)]);
        };
        killed(3);
        let found = found(Version::V2, root.path().to_owned());
        let mut kills = Kills::new(&found);
        assert!(!kills.take_one(&found));
        killed(5);
        kills.on_turn(&found);
        assert!(kills.take_one(&found));
        assert!(kills.take_one(&found));
        assert!(!kills.take_one(&found));
        killed(6);
        kills.on_turn(&found);
        kills.on_turn(&found);
        assert!(!kills.take_one(&found), "that was another's");
    }

    #[test]
    fn version_1_says_the_same_in_its_own_words() {
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
            of: Bytes(1000),
        };
        assert_eq!(charge, Some(expected));
    }
}
