//! READS WISHES: flags, file and environment become one validated `Spec`.
//!
//! Defaults < `SUPERVISE_*` variables < file < flags. Every wish is a key, a value as it was
//! written and its place ([`Wish`]); the last one for a key counts, and all are read by the same
//! rules. Everything that is wrong is said at once.

mod command;
mod complaint;
#[cfg(test)]
mod documents;
mod environment;
mod file;
mod keys;
mod limits;
mod listen;
mod lower;
mod place;
mod render;
#[cfg(test)]
mod tests;
mod wish;
mod words;

use std::{
    ffi::OsString,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::supervisor::spec::Spec;

pub use command::Entry;
pub use complaint::ConfigError;
pub use keys::{KEYS, Key, nearest};
pub use limits::{judge, too_small};
pub use place::{check_name, runtime_dir, runtime_dirs, socket_in, state_dirs};
pub use render::render;
pub use wish::{Origin, Value, Wish, Wishes};

/// What was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// What the service is to be.
    pub spec: Spec,
    /// What is odd and no mistake, one sentence each.
    pub warnings: Vec<String>,
}

/// What has to be known of the world to judge a wish.
pub trait Facts {
    /// Our effective user id.
    fn uid(&self) -> u32;
    /// Our current directory.
    fn here(&self) -> PathBuf;
    /// Whether there is a user of this name.
    fn user_exists(&self, name: &str) -> bool;
    /// What is at this path.
    fn entry(&self, path: &Path) -> Entry;
    /// Why a directory cannot hold our files: another user can change it, or one on the way to it.
    /// `None`: it can. Of a directory that does not exist yet, the part that exists is checked.
    fn unusable(&self, path: &Path) -> Option<String>;
}

/// This machine. What only system calls tell is told by the caller.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Our effective user id.
    pub uid: u32,
    /// Whether there is a user of this name.
    pub user_exists: fn(&str) -> bool,
    /// See [`Facts::unusable`].
    pub unusable: fn(&Path) -> Option<String>,
}

impl Facts for Machine {
    fn uid(&self) -> u32 {
        self.uid
    }

    fn here(&self) -> PathBuf {
        // Without a current directory relative paths stay so, and fail where they are used.
        std::env::current_dir().unwrap_or_default()
    }

    fn user_exists(&self, name: &str) -> bool {
        (self.user_exists)(name)
    }

    fn unusable(&self, path: &Path) -> Option<String> {
        (self.unusable)(path)
    }

    fn entry(&self, path: &Path) -> Entry {
        match std::fs::metadata(path) {
            Err(_) => Entry::Nothing,
            Ok(found) if found.is_dir() => Entry::Directory,
            Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {
                Entry::Program
            }
            Ok(_) => Entry::Other,
        }
    }
}

/// Makes the spec, or says all that is wrong with the wishes.
pub fn load(
    wishes: &Wishes,
    environ: impl IntoIterator<Item = (OsString, OsString)>,
    facts: &dyn Facts,
) -> Result<Loaded, ConfigError> {
    let environ = environ.into_iter().collect();
    let mut book = wish::Book::of_defaults();
    environment::read(&environ, &mut book);
    if let Some(path) = &wishes.config {
        file::read(path, &mut book)?;
    }
    for flag in &wishes.flags {
        book.add(flag.clone());
    }
    let spec = lower::lower(wishes, &environ, facts, &mut book);
    match ConfigError::from_all(book.complaints) {
        Some(error) => Err(error),
        None => Ok(Loaded {
            spec,
            warnings: book.warnings,
        }),
    }
}
