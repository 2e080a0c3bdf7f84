//! The history on disk: one file, which is replaced each minute, so that a crash leaves either the
//! old one or the new one.

use std::io;

use crate::{private_dir::PrivateDir, supervisor::history::History};

/// The file's name.
pub(super) const FILE: &str = "history.json";
/// The curves take 300 KiB, 256 ended workers 200 KiB, and a thousand running workers 800 KiB.
const FILE_MAX: u64 = 16 << 20;

pub(super) fn write(directory: &PrivateDir, history: &History) -> io::Result<()> {
    let text = serde_json::to_vec(history).map_err(io::Error::other)?;
    directory.replace(FILE, &text, 0o600)
}

/// `None`: there is no history.
pub(super) fn read(directory: &PrivateDir) -> Result<Option<History>, String> {
    let text = match directory.read(FILE, FILE_MAX) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let history: History = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    history.check()?;
    Ok(Some(history))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
        path::Path,
    };

    use super::*;
    use crate::{
        agent::kept::{About, Kept, Place},
        supervisor::{
            event::Limits,
            history::{Observation, Observed},
        },
        units::{Bytes, WorkerId},
    };

    fn place(home: &Path) -> Option<Place> {
        Some(Place {
            base: home.to_owned(),
            name: "shop".to_owned(),
            about: About::default(),
        })
    }

    fn open(home: &Path) -> Kept {
        Kept::open(place(home), 8)
    }

    fn observe(kept: &mut Kept, seconds: std::ops::Range<u64>) {
        for second in seconds {
            let observation = Observation {
                mode: "server".to_owned(),
                limits: Limits::default(),
                workers: vec![Observed {
                    worker: WorkerId::FIRST,
                    age: std::time::Duration::from_secs(second),
                    tasks: None,
                    memory: Some(Bytes::mib(100)),
                    warm: true,
                }],
                ..Observation::default()
            };
            kept.observe(1_700_000_000 + second, &observation);
        }
    }

    fn warnings(kept: &mut Kept) -> Vec<String> {
        std::iter::from_fn(|| kept.poll_warning()).collect()
    }

    fn workers(kept: &Kept) -> usize {
        kept.history().suggest().seen.workers
    }

    #[test]
    fn the_history_continues_after_a_restart() {
        let home = tempfile::tempdir().unwrap();
        let mut kept = open(home.path());
        observe(&mut kept, 0..20);
        drop(kept);
        let file = home.path().join("shop").join(FILE);
        let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);

        let mut kept = open(home.path());
        assert_eq!(warnings(&mut kept), [""; 0]);
        assert_eq!(workers(&kept), 1);
        observe(&mut kept, 30..40);
        assert_eq!(workers(&kept), 2);
    }

    #[test]
    fn after_an_upgrade_the_same_workers_go_on() {
        let home = tempfile::tempdir().unwrap();
        let mut kept = open(home.path());
        observe(&mut kept, 0..20);
        kept.flush();
        let lock = kept.claimed.as_ref().unwrap().lock().unwrap();
        let lock = lock.try_clone().unwrap().into();
        let handed = (kept.hand_over().unwrap(), Some(lock));
        let mut next = Kept::take_over(place(home.path()), 8, Some(handed));
        assert_eq!(warnings(&mut next), [""; 0]);
        observe(&mut next, 20..40);
        assert_eq!(workers(&next), 1);
    }

    #[test]
    fn the_history_is_written_each_minute() {
        let home = tempfile::tempdir().unwrap();
        let mut kept = open(home.path());
        observe(&mut kept, 0..70);
        // As a crash leaves it: what was queued is written, and nothing is added.
        kept.disk.as_mut().unwrap().flush();
        let directory = PrivateDir::open(&home.path().join("shop")).unwrap();
        let written = read(&directory).unwrap().unwrap();
        assert_eq!(written.suggest().seen.workers, 1);
    }

    #[test]
    fn a_file_that_is_not_a_history_is_left_out_and_replaced() {
        for (text, why) in [
            ("{", "EOF"),
            ("{\"format\":1}", "missing field"),
            (&"x".repeat(17 << 20), "longer"),
        ] {
            let home = tempfile::tempdir().unwrap();
            let place = home.path().join("shop");
            fs::create_dir(&place).unwrap();
            fs::write(place.join(FILE), text).unwrap();
            let mut kept = open(home.path());
            let said = warnings(&mut kept);
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].contains("history.json is left out: "), "{said:?}");
            assert!(said[0].contains(why), "{said:?}");
            observe(&mut kept, 0..20);
            drop(kept);
            assert_eq!(workers(&open(home.path())), 1);
        }
    }

    #[test]
    fn a_link_is_neither_read_nor_written_through() {
        let other = tempfile::tempdir().unwrap();
        observe(&mut open(other.path()), 0..20);
        let precious = other.path().join("shop").join(FILE);
        let content = fs::read(&precious).unwrap();

        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("shop");
        fs::create_dir(&place).unwrap();
        symlink(&precious, place.join(FILE)).unwrap();
        let mut kept = open(home.path());
        assert_eq!(warnings(&mut kept).len(), 1);
        assert_eq!(workers(&kept), 0);
        observe(&mut kept, 0..30);
        drop(kept);
        assert_eq!(fs::read(precious).unwrap(), content);
    }

    #[test]
    fn a_disk_that_fails_causes_one_warning() {
        let home = tempfile::tempdir().unwrap();
        let mut kept = open(home.path());
        let place = home.path().join("shop");
        fs::remove_dir_all(&place).unwrap();
        fs::write(&place, "a file where the directory was").unwrap();
        observe(&mut kept, 0..200);
        kept.disk.as_mut().unwrap().flush();
        let said = warnings(&mut kept);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("write the history: "), "{said:?}");
    }
}
