//! The agent's directory: its code, which workers load, and the files of questions and answers.

use std::{
    fs, io,
    io::Write as _,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use super::Place;
use crate::{
    private_dir::{Claimed, Contents, Create, PrivateDir},
    protocol::question::Answer,
};

/// Every interpreter that has the directory first in its PYTHONPATH executes this file.
const LOADER: &str = include_str!("../../python/supervise/_agent/sitecustomize.py");

/// The package in the same directory.
const PACKAGE: &str = "_supervise_agent";

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../python/supervise/_agent/", $name)))),*]
    };
}

/// The modules of the package.
pub(super) const MODULES: [(&str, &str); 55] = modules![
    "__init__.py",
    "advice.py",
    "after_drain.py",
    "allocators.py",
    "ask.py",
    "base.py",
    "boot.py",
    "boot_failures.py",
    "boot_failures_granian.py",
    "boot_failures_hypercorn.py",
    "boot_failures_uvicorn.py",
    "boot_failures_uwsgi.py",
    "bytecode.py",
    "causes.py",
    "census.py",
    "counting.py",
    "drain.py",
    "drain_daphne.py",
    "drain_granian.py",
    "drain_gunicorn.py",
    "drain_huey.py",
    "drain_hypercorn.py",
    "drain_rq.py",
    "drain_uvicorn.py",
    "drain_waitress.py",
    "fills.py",
    "first.py",
    "garbage.py",
    "heap.py",
    "hooks.py",
    "introspect.py",
    "lines.py",
    "page.py",
    "prepare.py",
    "protocol.py",
    "report.py",
    "retention_paths.py",
    "roots.py",
    "routes.py",
    "running.py",
    "servers.py",
    "serving.py",
    "source_locations.py",
    "state.py",
    "steps.py",
    "stream_grace.py",
    "streams.py",
    "streams_wsgi.py",
    "suspects.py",
    "targets.py",
    "tasks.py",
    "time_budget.py",
    "tracer.py",
    "verdict.py",
    "windows.py"
];

/// Interpreters of any user read the files.
const OPEN: u32 = 0o755;
const READABLE: u32 = 0o644;

/// The maximum length of an answer. A report has ten suspects at most.
pub(super) const ANSWER_MAX: u64 = 1 << 20;

const ANSWERS: &str = "said";
const ASK: &str = "ask";
const PAGE: &str = "page";
const STACKS: &str = "stacks";

/// The directory. Workers may run as another user, so the files that they only read belong to us,
/// and links made by them are not followed.
#[derive(Debug)]
pub(super) struct Directory {
    claimed: Claimed,
    asks: PrivateDir,
    answers: PrivateDir,
}

impl Directory {
    /// Makes a new directory, and removes one that an earlier run has left behind.
    pub(super) fn install(place: &Place) -> io::Result<Self> {
        let below = PrivateDir::make(&place.below, 0o711)?;
        below.sweep();
        let claimed = below.claim(&place.name, OPEN, Contents::Removed)?;
        let directory = claimed.directory();
        directory.subdirectory(PACKAGE, OPEN)?;
        let asks = directory.subdirectory(ASK, OPEN)?;
        let answers = directory.subdirectory(ANSWERS, OPEN)?;
        let directory = Self {
            claimed,
            asks,
            answers,
        };
        directory.write_code()?;
        Ok(directory)
    }

    /// Continues with the directory of the previous binary. Interpreters that start from now on
    /// load this binary's code. `handed` is the directory's name and the descriptor of its lock.
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
            answers: claimed.directory().given_directory(ANSWERS)?,
            claimed,
        };
        directory.write_code()?;
        Ok(directory)
    }

    /// RACE: interpreters may read a file at any moment, so each file is replaced as a whole.
    fn write_code(&self) -> io::Result<()> {
        let directory = self.claimed.directory();
        directory.replace("sitecustomize.py", LOADER.as_bytes(), READABLE)?;
        let package = directory.existing(PACKAGE)?;
        MODULES
            .iter()
            .try_for_each(|(name, text)| package.replace(name, text.as_bytes(), READABLE))
    }

    /// Gives the files that workers write to their user. Workers only read the other files.
    pub(super) fn give(&self, owner: Option<(u32, u32)>) -> io::Result<()> {
        let Some(owner) = owner else {
            return Ok(());
        };
        [PAGE, STACKS, ANSWERS]
            .into_iter()
            .try_for_each(|name| self.claimed.directory().give(name, owner))
    }

    pub(super) fn path(&self) -> &Path {
        self.claimed.directory().path()
    }

    pub(super) fn name(&self) -> &str {
        self.claimed.name()
    }

    /// The descriptor of its lock, which stays open for the next binary.
    pub(super) fn lock(&self) -> Option<RawFd> {
        self.claimed.lock().map(fs::File::as_raw_fd)
    }

    /// A new page.
    pub(super) fn new_page(&self, content: &[u8]) -> io::Result<fs::File> {
        self.create(PAGE, content)
    }

    /// Removes the page that the previous binary has made. Workers keep it open.
    pub(super) fn remove_page(&self) -> io::Result<()> {
        self.claimed.directory().remove(PAGE)
    }

    /// Gives a new page to the workers' user, as [`Self::give`] does.
    pub(super) fn give_page(&self, owner: Option<(u32, u32)>) -> io::Result<()> {
        match owner {
            Some(owner) => self.claimed.directory().give(PAGE, owner),
            None => Ok(()),
        }
    }

    /// The page that the previous binary has made.
    pub(super) fn page(&self) -> io::Result<fs::File> {
        self.claimed.directory().given_file(PAGE)
    }

    /// A new file for stacks.
    pub(super) fn new_stacks(&self) -> io::Result<fs::File> {
        self.create(STACKS, b"")
    }

    /// The file for stacks that the previous binary has made.
    pub(super) fn stacks(&self) -> io::Result<fs::File> {
        self.claimed.directory().given_file(STACKS)
    }

    fn create(&self, name: &str, content: &[u8]) -> io::Result<fs::File> {
        let file = self.claimed.directory().file(name, Create::New, 0o600);
        let mut file = file?;
        file.write_all(content)?;
        Ok(file)
    }

    /// The directory that agents write their answers to.
    pub(super) fn answers(&self) -> PathBuf {
        self.answers.path().to_owned()
    }

    /// Writes a question. The file is renamed into place, so that the agent never reads a part of
    /// it.
    pub(super) fn write_ask(&self, pid: i32, text: &str) -> io::Result<()> {
        self.asks
            .replace(&pid.to_string(), text.as_bytes(), READABLE)
    }

    /// Removes the question of a process that has ended, because another process may get its pid.
    pub(super) fn remove_ask(&self, pid: i32) {
        let _gone = self.asks.remove(&pid.to_string());
    }

    /// The answer to question `id`, if there is one. It is removed after it was read.
    pub(super) fn read_answer(&self, pid: i32, id: u64) -> Option<Answer> {
        let name = format!("{pid}.json");
        let text = self.answers.read(&name, ANSWER_MAX).ok()?;
        let answer = Answer::read(&text)?;
        // RACE: this may be a late answer to an earlier question. The answer to this one will
        // replace it.
        if answer.id != id {
            return None;
        }
        let _gone = self.answers.remove(&name);
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
    fn an_answer_is_read_once_and_only_for_its_question() {
        let home = tempfile::tempdir().unwrap();
        let place = Place {
            below: home.path().to_owned(),
            name: "shop.agent".to_owned(),
            owner: None,
        };
        let directory = Directory::install(&place).unwrap();
        directory.write_ask(7, "{}").unwrap();
        assert_eq!(directory.read_answer(7, 3), None);
        fs::write(
            directory.answers().join("7.json"),
            r#"{"id": 3, "ok": true}"#,
        )
        .unwrap();
        assert_eq!(directory.read_answer(7, 4), None);
        assert!(directory.read_answer(7, 3).is_some());
        assert_eq!(directory.read_answer(7, 3), None);
        fs::write(home.path().join("other"), r#"{"id": 4}"#).unwrap();
        let link = directory.answers().join("7.json");
        std::os::unix::fs::symlink(home.path().join("other"), link).unwrap();
        assert_eq!(directory.read_answer(7, 4), None);
        fs::remove_file(directory.answers().join("7.json")).unwrap();
        let pipe = directory.answers().join("7.json");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(directory.read_answer(7, 4), None);
    }

    #[test]
    fn two_services_of_one_name_have_two_directories_and_an_upgrade_keeps_its_own() {
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
