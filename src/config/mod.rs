//! READS SETTINGS from flags, file and environment, and makes one validated `Spec` of them.
//!
//! Flags override the file, the file overrides `SUPERVISE_*` variables, variables override
//! defaults. A [`Setting`] is a key, a value as written, and its origin. All errors are reported at
//! once.

mod build;
mod command;
#[cfg(test)]
mod copies_tests;
mod diagnostic;
#[cfg(test)]
mod documents_tests;
mod environment;
mod file;
mod keys;
#[cfg(test)]
mod layers_tests;
mod limits;
mod listen;
mod parsers;
mod paths;
#[cfg(test)]
mod pool_tests;
mod render;
mod settings;
#[cfg(test)]
mod tests;
mod types;

use std::{
    ffi::OsString,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::supervisor::spec::Spec;

pub use command::Entry;
pub use diagnostic::ConfigError;
pub use keys::{Key, Mode, keys, nearest};
pub use limits::{judge, too_small};
pub use paths::{check_name, runtime_dir, runtime_dirs, socket_in, state_dirs};
pub use render::{render, template};
pub use settings::{CommandLine, Origin, Setting, Value};

/// A validated configuration.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub spec: Spec,
    /// Warnings.
    pub warnings: Vec<String>,
    /// Hints that only `supervise check` shows.
    pub hints: Vec<String>,
}

/// The facts about this machine that validation needs.
pub trait Facts {
    /// The effective user id of `supervise`.
    fn uid(&self) -> u32;
    /// The current directory.
    fn here(&self) -> PathBuf;
    /// Whether there is a user with this name.
    fn user_exists(&self, name: &str) -> bool;
    /// The kind of file at this path.
    fn entry(&self, path: &Path) -> Entry;
    /// Why a directory cannot be used for files of `supervise`: another user can change it or a
    /// directory above it. `None`: it can be used. If the directory does not exist yet, its
    /// existing ancestors are checked.
    fn unusable(&self, path: &Path) -> Option<String>;
    /// The number of cores that the service may use: by its affinity and its CPU quota.
    fn cores(&self) -> u32 {
        let cores = std::thread::available_parallelism();
        cores.map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
    }
}

/// This machine. The caller provides the functions that need system calls.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// The effective user id of `supervise`.
    pub uid: u32,
    /// Whether there is a user with this name.
    pub user_exists: fn(&str) -> bool,
    /// See [`Facts::unusable`].
    pub unusable: fn(&Path) -> Option<String>,
}

impl Facts for Machine {
    fn uid(&self) -> u32 {
        self.uid
    }

    fn here(&self) -> PathBuf {
        // Without a current directory, relative paths stay relative, and fail where they are used.
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

/// Loads and validates a configuration.
///
/// # Errors
/// There are errors in the settings. All of them are reported.
pub fn load(
    command_line: &CommandLine,
    environ: impl IntoIterator<Item = (OsString, OsString)>,
    facts: &dyn Facts,
) -> Result<Loaded, ConfigError> {
    let environ = environ.into_iter().collect();
    let mut settings = settings::Settings::default();
    environment::read(&environ, &mut settings);
    if let Some(path) = &command_line.config {
        file::read(path, &mut settings)?;
    }
    for flag in &command_line.flags {
        settings.add(flag.clone());
    }
    let mode = if command_line.is_pool || settings.has_pool {
        Mode::Pool
    } else {
        Mode::Service
    };
    settings.complete(mode);
    let spec = match mode {
        Mode::Service => build::service(command_line, &environ, facts, &mut settings),
        Mode::Pool => build::pool(&environ, facts, &mut settings),
    };
    settings.hints.sort();
    match ConfigError::from_all(settings.diagnostics) {
        Some(error) => Err(error),
        None => Ok(Loaded {
            spec,
            warnings: settings.warnings,
            hints: settings.hints.into_iter().map(|(_, hint)| hint).collect(),
        }),
    }
}
