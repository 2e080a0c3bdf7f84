//! The agent's directory: its code for the workers to load, questions to them, answers from them.

use std::{
    fs, io,
    io::Write as _,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use crate::private_dir::{Claimed, Contents, Create, PrivateDir};

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
const MODULES: [(&str, &str); 32] = modules![
    "__init__.py",
    "advice.py",
    "allocators.py",
    "ask.py",
    "books.py",
    "boot.py",
    "boot_failures.py",
    "box.py",
    "census.py",
    "counting.py",
    "drain.py",
    "drain_gunicorn.py",
    "drain_hypercorn.py",
    "drain_uvicorn.py",
    "drain_waitress.py",
    "first.py",
    "garbage.py",
    "heap.py",
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

/// Read by interpreters of any user.
const OPEN: u32 = 0o755;
const READABLE: u32 = 0o644;

/// An answer is no longer: a report has at most ten suspects.
const ANSWER_MAX: u64 = 1 << 20;

const SAID: &str = "said";
const ASK: &str = "ask";
const PAGE: &str = "page";
const STACKS: &str = "stacks";

/// The directory. Workers may run as another user: files that they only read belong to us, and
/// links that they made are not followed.
#[derive(Debug)]
pub(super) struct Directory {
    claimed: Claimed,
    asks: PrivateDir,
    said: PrivateDir,
}

impl Directory {
    /// Makes it anew: what an earlier life left has nothing to say.
    pub(super) fn install(place: &Place) -> io::Result<Self> {
        let below = PrivateDir::make(&place.below, 0o711)?;
        below.sweep();
        let claimed = below.claim(&place.name, OPEN, Contents::Removed)?;
        let directory = claimed.directory();
        directory.subdirectory(PACKAGE, OPEN)?;
        let asks = directory.subdirectory(ASK, OPEN)?;
        let said = directory.subdirectory(SAID, OPEN)?;
        let directory = Self {
            claimed,
            asks,
            said,
        };
        directory.write_code()?;
        Ok(directory)
    }

    /// The one that is there, with this binary's code for interpreters that start from now on.
    /// `handed` is its name and the descriptor of its lock, unless an earlier version made it.
    pub(super) fn take_over(
        place: &Place,
        handed: (Option<&str>, Option<OwnedFd>),
    ) -> io::Result<Self> {
        let below = PrivateDir::open(&place.below)?;
        let (name, lock) = handed;
        let name = name.unwrap_or(&place.name);
        let claimed = below.claimed(name, lock.map(fs::File::from), Contents::Removed)?;
        let directory = Self {
            asks: claimed.directory().existing(ASK)?,
            said: claimed.directory().given_directory(SAID)?,
            claimed,
        };
        directory.write_code()?;
        Ok(directory)
    }

    /// An interpreter may read it at any moment: each file is whole or the one before.
    fn write_code(&self) -> io::Result<()> {
        let directory = self.claimed.directory();
        directory.replace("sitecustomize.py", LOADER.as_bytes(), READABLE)?;
        let package = directory.existing(PACKAGE)?;
        MODULES
            .iter()
            .try_for_each(|(name, text)| package.replace(name, text.as_bytes(), READABLE))
    }

    /// What workers write is theirs, where they are somebody else; the rest they only read.
    pub(super) fn give(&self, owner: Option<(u32, u32)>) -> io::Result<()> {
        let Some(owner) = owner else {
            return Ok(());
        };
        [PAGE, STACKS, SAID]
            .into_iter()
            .try_for_each(|name| self.claimed.directory().give(name, owner))
    }

    pub(super) fn path(&self) -> &Path {
        self.claimed.directory().path()
    }

    pub(super) fn name(&self) -> &str {
        self.claimed.name()
    }

    /// The descriptor of its lock, to be left open for a successor.
    pub(super) fn lock(&self) -> Option<RawFd> {
        self.claimed.lock().map(fs::File::as_raw_fd)
    }

    /// A new page.
    pub(super) fn new_page(&self, content: &[u8]) -> io::Result<fs::File> {
        self.create(PAGE, content)
    }

    /// The page that a predecessor made.
    pub(super) fn page(&self) -> io::Result<fs::File> {
        self.claimed.directory().given_file(PAGE)
    }

    /// A new file for stacks.
    pub(super) fn new_stacks(&self) -> io::Result<fs::File> {
        self.create(STACKS, b"")
    }

    /// The stacks that a predecessor asked for.
    pub(super) fn stacks(&self) -> io::Result<fs::File> {
        self.claimed.directory().given_file(STACKS)
    }

    fn create(&self, name: &str, content: &[u8]) -> io::Result<fs::File> {
        let file = self.claimed.directory().file(name, Create::New, 0o600);
        let mut file = file?;
        file.write_all(content)?;
        Ok(file)
    }

    pub(super) fn said(&self) -> PathBuf {
        self.said.path().to_owned()
    }

    /// Leaves a question. Renamed into place, so that it is never read by halves.
    pub(super) fn write_ask(&self, pid: i32, text: &str) -> io::Result<()> {
        self.asks
            .replace(&pid.to_string(), text.as_bytes(), READABLE)
    }

    /// The question of a process that has ended is nobody's: its pid may be another's soon.
    pub(super) fn remove_ask(&self, pid: i32) {
        let _gone = self.asks.remove(&pid.to_string());
    }

    /// The answer to question `id`, if it is there; read once.
    pub(super) fn read_answer(&self, pid: i32, id: u64) -> Option<Value> {
        let name = format!("{pid}.json");
        let text = self.said.read(&name, ANSWER_MAX).ok()?;
        let answer: Value = serde_json::from_slice(&text).ok()?;
        // RACE: an answer to a question that we have given up on is read in place of the one to
        // come, and left for it to be overwritten.
        if answer.get("id").and_then(Value::as_u64) != Some(id) {
            return None;
        }
        let _gone = self.said.remove(&name);
        Some(answer)
    }
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
            below: home.path().to_owned(),
            name: "shop.agent".to_owned(),
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
        fs::remove_file(directory.said().join("7.json")).unwrap();
        let pipe = directory.said().join("7.json");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(directory.read_answer(7, 4), None);
    }

    #[test]
    fn two_services_of_one_name_have_two_directories_and_a_successor_keeps_its_own() {
        let home = tempfile::tempdir().unwrap();
        let place = Place {
            below: home.path().to_owned(),
            name: "shop".to_owned(),
            owner: None,
        };
        let first = Directory::install(&place).unwrap();
        first.new_page(b"first").unwrap();
        first.new_stacks().unwrap();
        let second = Directory::install(&place).unwrap();
        assert_ne!(first.path(), second.path());
        assert_eq!(fs::read(home.path().join("shop/page")).unwrap(), b"first");
        // An execve keeps the descriptor and runs no destructor.
        let lock = nix::unistd::dup(first.claimed.lock().unwrap()).unwrap();
        std::mem::forget(first);
        let handed = (Some("shop"), Some(lock));
        let successor = Directory::take_over(&place, handed).unwrap();
        successor.page().unwrap();
        drop(second);
        drop(successor);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }
}
