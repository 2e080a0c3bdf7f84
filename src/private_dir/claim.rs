//! Directories that belong to one service: it holds a lock in its directory as long as it lives,
//! and another service of the same name takes the next free name.
//!
//! A lock and not a pid, because the owner may be in another pid namespace, where its pid means
//! another process or none.

use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    time::Duration,
};

use nix::sys::stat::fstat;

use super::{Create, PrivateDir, refusal};

/// Maximum services of one name, each with its own directory.
const NAMES: u32 = 64;
/// Attempts to lock a directory, which may be removed meanwhile.
const TRIES: u32 = 16;
/// Time limit for removing files at a start or stop. The rest is moved aside.
const CLEARED: Duration = Duration::from_secs(1);
/// Time limit for removing what was moved aside, on a thread of its own.
const SWEPT: Duration = Duration::from_secs(3600);
const ASIDE: &str = ".supervise-removed.";

const LOCK: &str = "lock";

/// The lifetime of the contents of a claimed directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Contents {
    /// They outlive the service.
    Kept,
    /// They are removed at the beginning, and at the end together with the directory.
    Removed,
}

/// A claimed directory.
#[derive(Debug)]
pub struct Claimed {
    parent: PrivateDir,
    name: String,
    directory: PrivateDir,
    /// `None`: claimed by an earlier version, which had no lock.
    lock: Option<File>,
    contents: Contents,
}

impl PrivateDir {
    /// Claims the directory `name` in this one, or `name.2` and so on where another service has it.
    ///
    /// No directory can be claimed. The error is that of the first one.
    /// None can be claimed; the error is that of the first.
    pub fn claim(&self, name: &str, mode: u32, contents: Contents) -> io::Result<Claimed> {
        let mut first_error = None;
        for number in 1..=NAMES {
            let name = match number {
                1 => name.to_owned(),
                _ => format!("{name}.{number}"),
            };
            match self.try_claim(&name, mode, contents) {
                Ok(Some(claimed)) => return Ok(claimed),
                Ok(None) => {}
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        let all_taken = || refusal(format!("{NAMES} services have directories of this name"));
        Err(self.naming(name)(first_error.unwrap_or_else(all_taken)))
    }

    /// `None` if another service has it.
    fn try_claim(&self, name: &str, mode: u32, contents: Contents) -> io::Result<Option<Claimed>> {
        for _ in 0..TRIES {
            let directory = match self.subdirectory(name, mode) {
                // RACE: its owner is removing it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                made => made?,
            };
            let lock = match directory.file(LOCK, Create::IfMissing, 0o600) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // RACE: its owner may have removed it after we opened it and before we locked it.
            if !self.is_still(name, &directory, &lock)? {
                continue;
            }
            if contents == Contents::Removed && directory.clear(Some(LOCK), CLEARED).is_err() {
                self.move_aside(name)?;
                continue;
            }
            return Ok(Some(Claimed {
                parent: self.try_clone()?,
                name: name.to_owned(),
                directory,
                lock: Some(lock),
                contents,
            }));
        }
        Ok(None)
    }

    /// Renames a directory that a worker has filled with more than can be removed now.
    /// [`PrivateDir::sweep`] removes it.
    pub(super) fn move_aside(&self, name: &str) -> io::Result<()> {
        for number in 1..=NAMES {
            let aside = format!("{ASIDE}{number}");
            // RACE: another service may take the same name at this moment. Its directory is not
            // empty, so the kernel refuses this rename.
            if self.entry(&aside)?.is_none() && self.rename(name, &aside).is_ok() {
                return Ok(());
            }
            if self.entry(name)?.is_none() {
                return Ok(());
            }
        }
        Err(refusal(
            "the files of an earlier service cannot be moved aside",
        ))
    }

    /// Removes what was moved aside, on a thread of its own.
    pub fn sweep(&self) {
        let names = self.names().unwrap_or_default();
        let names = names.into_iter().filter_map(|name| name.into_string().ok());
        let aside: Vec<_> = names.filter(|name| name.starts_with(ASIDE)).collect();
        let Ok(parent) = self.try_clone() else { return };
        if aside.is_empty() {
            return;
        }
        let sweep = move || {
            for name in aside {
                // If this fails, the next service tries again.
                let cleared = parent.existing(&name);
                if cleared.and_then(|it| it.clear(None, SWEPT)).is_ok() {
                    let _gone = parent.remove_directory(&name);
                }
            }
        };
        let thread = std::thread::Builder::new().name("sweep".to_owned());
        let _later = thread.spawn(sweep);
    }

    /// Removes the directory `name` in this one, unless a service has claimed it.
    pub fn remove_unclaimed(&self, name: &str) {
        if self.existing(name).is_ok() {
            drop(self.try_claim(name, 0o700, Contents::Removed));
        }
    }

    pub(super) fn is_still(&self, name: &str, directory: &Self, lock: &File) -> io::Result<bool> {
        let held = fstat(directory)?;
        let is_it = self
            .entry(name)?
            .is_some_and(|now| (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino));
        let inode = lock.metadata()?.ino();
        Ok(is_it
            && directory
                .entry(LOCK)?
                .is_some_and(|now| now.st_ino == inode))
    }

    /// The directory `name` in this one that the previous binary of this process has claimed, with
    /// its open lock.
    ///
    /// # Errors
    /// It does not exist any more.
    pub fn claimed(
        &self,
        name: &str,
        lock: Option<File>,
        contents: Contents,
    ) -> io::Result<Claimed> {
        let directory = self.existing(name)?;
        let lock = lock.or_else(|| {
            let lock = directory.file(LOCK, Create::IfMissing, 0o600).ok()?;
            lock.try_lock().is_ok().then_some(lock)
        });
        Ok(Claimed {
            parent: self.try_clone()?,
            name: name.to_owned(),
            directory,
            lock,
            contents,
        })
    }
}

impl Claimed {
    /// The directory.
    pub const fn directory(&self) -> &PrivateDir {
        &self.directory
    }

    /// The name that it got.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its lock, which stays open for the next binary.
    pub const fn lock(&self) -> Option<&File> {
        self.lock.as_ref()
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if self.contents == Contents::Kept {
            return;
        }
        // The lock is removed last, while we hold it.
        if self.directory.clear(Some(LOCK), CLEARED).is_ok() {
            let _gone = self.directory.remove(LOCK);
            let _gone = self.parent.remove_directory(&self.name);
        } else {
            let _aside = self.parent.move_aside(&self.name);
        }
    }
}
