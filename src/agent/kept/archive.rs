//! Reports and events that services have left on disk, read after the services have ended.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{private_dir::PrivateDir, supervisor::history::History, units::ReportId};

use super::{disk, events, history, read};

/// The file that describes the service of a directory.
const ABOUT: &str = "service.json";
const ABOUT_MAX: u64 = 64 << 10;

/// The service of a directory.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct About {
    /// The name of the service.
    pub name: String,
    /// The working directory of its command.
    pub directory: PathBuf,
    /// The path of its control socket.
    pub socket: PathBuf,
}

/// The directory of one service.
#[derive(Debug)]
pub struct Archive {
    /// The service.
    pub about: About,
    /// The directory's path.
    pub path: PathBuf,
    /// When the last event was written.
    pub changed: SystemTime,
    directory: PrivateDir,
}

impl Archive {
    /// The archives below these directories, the newest first. A service manager gives each service
    /// its own directory, so an archive may lie one level deeper.
    pub fn find(bases: &[PathBuf]) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        let tops = bases
            .iter()
            .filter_map(|base| PrivateDir::open_untrusted(base).ok());
        for directory in tops.flat_map(|top| subdirectories(&top)) {
            let next = subdirectories(&directory);
            found.extend(Self::open(directory));
            found.extend(next.into_iter().filter_map(Self::open));
        }
        found.sort_by(|one, other| (&one.path, other.changed).cmp(&(&other.path, one.changed)));
        found.dedup_by(|one, other| one.path == other.path);
        found.sort_by_key(|one| std::cmp::Reverse(one.changed));
        found
    }

    fn open(directory: PrivateDir) -> Option<Self> {
        let text = directory.read(ABOUT, ABOUT_MAX).ok()?;
        let about = serde_json::from_slice(&text).ok()?;
        let path = directory.path().to_owned();
        let changed = ["events.jsonl", "events.1.jsonl", ABOUT]
            .into_iter()
            .filter_map(|name| directory.entry(name).ok().flatten())
            .filter_map(|found| u64::try_from(found.st_mtime).ok())
            .max()
            .unwrap_or_default();
        Some(Self {
            about,
            path,
            changed: SystemTime::UNIX_EPOCH + Duration::from_secs(changed),
            directory,
        })
    }

    /// The reports, the oldest first. Unreadable reports are left out.
    pub fn reports(&self) -> Vec<(ReportId, String)> {
        let ids = disk::list(&self.directory).unwrap_or_default();
        ids.into_iter()
            .filter_map(|id| Some((id, read(&self.directory, id).ok()?)))
            .collect()
    }

    /// The history. `None`: none was written.
    ///
    /// # Errors
    /// The file is not a history.
    pub fn history(&self) -> Result<Option<History>, String> {
        history::read(&self.directory)
    }

    /// The events, the oldest first, each a JSON object.
    pub fn events(&self) -> Vec<String> {
        events::read(&self.directory)
    }
}

/// Writes the description of the service into its directory.
pub(super) fn describe(directory: &PrivateDir, about: &About) -> std::io::Result<()> {
    let text = serde_json::to_vec(about).map_err(std::io::Error::other)?;
    directory.replace(ABOUT, &text, 0o600)
}

fn subdirectories(directory: &PrivateDir) -> Vec<PrivateDir> {
    let names = directory.names().unwrap_or_default();
    let names = names.iter().filter_map(|name| name.to_str());
    // With `DynamicUser=`, systemd puts a link to the service's directory here.
    let linked = |name: &str| PrivateDir::open_untrusted(&directory.path().join(name));
    let open = |name| directory.given_directory(name).or_else(|_| linked(name));
    names.filter_map(|name| open(name).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::agent::kept::{Kept, Place};

    fn place(base: &Path, name: &str, directory: &str) -> Place {
        Place {
            base: base.to_owned(),
            name: format!("{name}-x"),
            about: About {
                name: name.to_owned(),
                directory: directory.into(),
                socket: "/run/x.sock".into(),
            },
        }
    }

    #[test]
    fn an_archive_is_found_by_its_service_name_and_one_level_deeper() {
        let home = tempfile::tempdir().unwrap();
        let mut shop = Kept::open(Some(place(home.path(), "shop", "/a")), 8);
        shop.keep(ReportId(1), serde_json::json!({"worker": "w1"}));
        shop.keep_event("{\"id\":1}".to_owned());
        drop(shop);
        let unit = home.path().join("unit");
        drop(Kept::open(Some(place(&unit, "etl", "/b")), 8));
        fs::create_dir_all(home.path().join("other/deeper")).unwrap();
        fs::write(home.path().join("file"), "").unwrap();

        let found = Archive::find(&[home.path().to_owned(), home.path().to_owned()]);
        let mut names: Vec<_> = found.iter().map(|one| one.about.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["etl", "shop"]);
        let shop = found.iter().find(|one| one.about.name == "shop").unwrap();
        let reports = shop.reports();
        assert_eq!(
            reports,
            [(ReportId(1), "{\"id\":\"r1\",\"worker\":\"w1\"}".to_owned())]
        );
        assert_eq!(shop.events(), ["{\"id\":1}"]);
    }
}
