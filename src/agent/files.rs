//! The agent's directory: its code for the workers to load, questions to them, answers from them.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::Place;

/// Found first by every interpreter that has the directory in its PYTHONPATH.
const LOADER: &str = include_str!("../../python/supervise/_agent/sitecustomize.py");

/// The package beside it.
const PACKAGE: &str = "_supervise_agent";

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../python/supervise/_agent/", $name)))),*]
    };
}

/// Its modules.
const MODULES: [(&str, &str); 29] = modules![
    "__init__.py",
    "advice.py",
    "allocators.py",
    "ask.py",
    "books.py",
    "boot.py",
    "box.py",
    "census.py",
    "counting.py",
    "drain.py",
    "drain_gunicorn.py",
    "drain_hypercorn.py",
    "drain_uvicorn.py",
    "drain_waitress.py",
    "garbage.py",
    "holders.py",
    "hooks.py",
    "lines.py",
    "looks.py",
    "page.py",
    "places.py",
    "report.py",
    "running.py",
    "servers.py",
    "suspects.py",
    "targets.py",
    "tracer.py",
    "verdict.py",
    "windows.py"
];

/// An answer is no longer: a report has at most ten suspects.
const ANSWER_MAX: u64 = 1 << 20;

/// The directory.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Makes it anew: what an earlier life left has nothing to say.
    pub(super) fn install(place: &Place) -> io::Result<Self> {
        let path = place.path.clone();
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(about(&path, "remove", error));
            }
            Ok(()) | Err(_) => {}
        }
        if let Some(parent) = path.parent() {
            let mut builder = DirBuilder::new();
            let made = builder.recursive(true).mode(0o711).create(parent);
            made.map_err(|error| about(parent, "create", error))?;
        }
        let directory = Self { path };
        directory.make()?;
        Ok(directory)
    }

    /// The one that is there, with this binary's code for interpreters that start from now on.
    pub(super) fn take_over(place: &Place) -> io::Result<Self> {
        let directory = Self {
            path: place.path.clone(),
        };
        directory.write_code()?;
        Ok(directory)
    }

    fn make(&self) -> io::Result<()> {
        for made in [
            self.path.clone(),
            self.path.join(PACKAGE),
            self.asks(),
            self.said(),
        ] {
            fs::create_dir(&made)
                .and_then(|()| fs::set_permissions(&made, Permissions::from_mode(0o755)))
                .map_err(|error| about(&made, "create", error))?;
        }
        self.write_code()
    }

    /// An interpreter may read it at any moment: each file is whole or the one before.
    fn write_code(&self) -> io::Result<()> {
        self.replace(&self.path.join("sitecustomize.py"), LOADER)?;
        MODULES
            .iter()
            .try_for_each(|(name, text)| self.replace(&self.path.join(PACKAGE).join(name), text))
    }

    fn replace(&self, path: &Path, text: &str) -> io::Result<()> {
        let half = path.with_extension("half");
        self.write(&half, text)?;
        fs::rename(&half, path).map_err(|error| about(path, "write", error))
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        fs::write(path, text)
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o644)))
            .map_err(|error| about(path, "write", error))
    }

    /// What workers write is theirs, where they are somebody else; the rest they only read.
    pub(super) fn give(&self, owner: Option<(u32, u32)>) -> io::Result<()> {
        let Some((user, group)) = owner else {
            return Ok(());
        };
        for path in [self.page(), self.stacks(), self.said()] {
            chown(&path, Some(user), Some(group)).map_err(|error| about(&path, "give", error))?;
        }
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn page(&self) -> PathBuf {
        self.path.join("page")
    }

    pub(super) fn stacks(&self) -> PathBuf {
        self.path.join("stacks")
    }

    fn asks(&self) -> PathBuf {
        self.path.join("ask")
    }

    pub(super) fn said(&self) -> PathBuf {
        self.path.join("said")
    }

    /// Leaves a question. Renamed into place, so that it is never read by halves.
    pub(super) fn write_ask(&self, pid: i32, text: &str) -> io::Result<()> {
        self.replace(&self.asks().join(pid.to_string()), text)
    }

    /// The question of a process that has ended is nobody's: its pid may be another's soon.
    pub(super) fn remove_ask(&self, pid: i32) {
        let _gone = fs::remove_file(self.asks().join(pid.to_string()));
    }

    /// The answer to question `id`, if it is there; read once.
    pub(super) fn read_answer(&self, pid: i32, id: u64) -> Option<Value> {
        let path = self.said().join(format!("{pid}.json"));
        // The directory may be another user's: a link in it leads nowhere.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .ok()?;
        let mut text = Vec::new();
        file.take(ANSWER_MAX).read_to_end(&mut text).ok()?;
        let answer: Value = serde_json::from_slice(&text).ok()?;
        // RACE: an answer to a question that we have given up on is read in place of the one to
        // come, and left for it to be overwritten.
        if answer.get("id").and_then(Value::as_u64) != Some(id) {
            return None;
        }
        let _gone = fs::remove_file(&path);
        Some(answer)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What stays is replaced by the next one of the name.
        let _gone = fs::remove_dir_all(&self.path);
    }
}

/// Names the file in an error.
pub(super) fn about(path: &Path, verb: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{verb} {}: {error}", path.display()))
}

/// Opens a file that a predecessor has made.
pub(super) fn open(path: &Path) -> io::Result<fs::File> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| about(path, "open", error))
}

/// Writes `text` to a new file that only its owner writes.
pub(super) fn create(path: &Path, content: &[u8]) -> io::Result<fs::File> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| about(path, "create", error))?;
    file.write_all(content)
        .map_err(|error| about(path, "write", error))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_of_the_agent_is_embedded() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/supervise/_agent");
        let mut there: Vec<String> = fs::read_dir(source)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".py") && name != "sitecustomize.py")
            .collect();
        there.sort();
        assert_eq!(there, MODULES.map(|(name, _)| name.to_owned()));
    }

    #[test]
    fn an_answer_is_read_once_and_only_if_it_answers() {
        let home = tempfile::tempdir().unwrap();
        let place = Place {
            path: home.path().join("shop.agent"),
            owner: None,
        };
        let directory = Directory::install(&place).unwrap();
        directory.write_ask(7, "{}").unwrap();
        assert_eq!(directory.read_answer(7, 3), None);
        fs::write(directory.said().join("7.json"), r#"{"id": 3, "ok": true}"#).unwrap();
        assert_eq!(directory.read_answer(7, 4), None);
        assert!(directory.read_answer(7, 3).is_some());
        assert_eq!(directory.read_answer(7, 3), None);
        fs::write(home.path().join("other"), r#"{"id": 4}"#).unwrap();
        let link = directory.said().join("7.json");
        std::os::unix::fs::symlink(home.path().join("other"), link).unwrap();
        assert_eq!(directory.read_answer(7, 4), None);
    }
}
