//! The Python side of a pool: its files, and the command that runs its template.

use std::{ffi::OsString, io, path::Path};

use serde_json::json;

use crate::private_dir::{Claimed, Contents, PrivateDir};

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../python/supervise/_pool/", $name)))),*]
    };
}

const MODULES: [(&str, &str); 11] = modules![
    "__init__.py",
    "codec.py",
    "fork_check.py",
    "fork_renew.py",
    "fork_threads.py",
    "large.py",
    "nest.py",
    "peak.py",
    "prints.py",
    "template.py",
    "worker.py"
];

/// The package as tasks would see it in a traceback.
const PACKAGE: &str = "_supervise_pool";

const RUN: &str = "import sys; sys.path.insert(0, sys.argv[2]); \
                   from _supervise_pool import template; template.run()";

/// The settings of the Python side.
#[derive(Clone, Debug)]
pub struct Orders {
    /// `MODULE:FUNCTION` for lines; `None` for an executor.
    pub function: Option<String>,
    /// `one`, `args` or `kwargs`.
    pub call: String,
    /// Modules to import first.
    pub imports: Vec<String>,
    /// `MODULE:FUNCTION` that each worker begins with.
    pub initializer: Option<String>,
    /// The template imports this many modules, in their order; each worker imports the rest.
    pub warm: u32,
}

impl Orders {
    /// For `warm`: the template imports all modules.
    pub const ALL: u32 = u32::MAX;

    /// The modules of `imports` that the template imports.
    #[must_use]
    pub fn warm_imports(&self) -> &[String] {
        let warm = usize::try_from(self.warm).unwrap_or(usize::MAX);
        self.imports.get(..warm).unwrap_or(&self.imports)
    }
}

/// The files, for as long as it lives.
#[derive(Debug)]
pub struct Files {
    claimed: Claimed,
}

impl Files {
    /// Writes them into a new directory that is ours alone.
    ///
    /// # Errors
    /// Names the file that could not be written.
    pub fn install(below: &Path, name: &str) -> io::Result<Self> {
        let below = PrivateDir::make(below, 0o700)?;
        sweep(&below);
        let claimed = below.claim(&format!("{name}.pool"), 0o700, Contents::Removed)?;
        let package = claimed.directory().subdirectory(PACKAGE, 0o700)?;
        for (name, text) in MODULES {
            package.replace(name, text.as_bytes(), 0o600)?;
        }
        Ok(Self { claimed })
    }

    /// The command line of the template; `control` is its end of our socket.
    pub fn argv(&self, python: &Path, orders: &Orders, control: i32) -> Vec<OsString> {
        let words = json!({
            "control": control,
            "codec": if orders.function.is_some() { "json" } else { "pickle" },
            "function": orders.function,
            "call": orders.call,
            "imports": orders.imports,
            "initializer": orders.initializer,
            "warm": orders.warm,
        });
        vec![
            python.into(),
            "-c".into(),
            RUN.into(),
            words.to_string().into(),
            self.claimed.directory().path().into(),
        ]
    }
}

/// Removes directories of killed pools. The pid in the name means another process or none here if
/// the pool runs in another pid namespace, so the lock decides.
fn sweep(below: &PrivateDir) {
    below.sweep();
    let names = below.names().unwrap_or_default();
    for name in names.iter().filter_map(|name| name.to_str()) {
        let number = name
            .strip_prefix("map-")
            .and_then(|name| name.strip_suffix(".pool")?.parse::<u32>().ok());
        if number.is_some_and(|number| !Path::new(&format!("/proc/{number}")).exists()) {
            below.remove_unclaimed(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_module_is_embedded() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/supervise/_pool");
        let mut there: Vec<String> = fs::read_dir(source)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".py"))
            .collect();
        there.sort();
        assert_eq!(there, MODULES.map(|(name, _)| name.to_owned()));
    }

    #[test]
    fn what_a_killed_pool_has_left_is_removed() {
        let below = tempfile::tempdir().unwrap();
        let living = format!("map-{}.pool", std::process::id());
        // No process has this number: proc(5), pid_max is 2^22.
        for name in ["map-4194305.pool", living.as_str(), "map-shop.pool"] {
            fs::create_dir(below.path().join(name)).unwrap();
        }
        let files = Files::install(below.path(), "map-1").unwrap();
        assert!(!below.path().join("map-4194305.pool").exists());
        assert!(below.path().join(living).exists());
        assert!(below.path().join("map-shop.pool").exists());
        drop(files);
        // A pool in another pid namespace: here no process has its pid.
        let files = Files::install(below.path(), "map-4194305").unwrap();
        drop(Files::install(below.path(), "map-1").unwrap());
        assert!(below.path().join("map-4194305.pool").exists());
        // Another one, with our own pid there.
        let same = Files::install(below.path(), "map-4194305").unwrap();
        assert_ne!(
            files.claimed.directory().path(),
            same.claimed.directory().path()
        );
    }
}
