//! The Python side of a pool: its files, and the command that runs its template.

use std::{ffi::OsString, io, path::Path};

use super::files;
use crate::{
    private_dir::{Claimed, Contents, PrivateDir},
    protocol::{
        frame,
        template::{self, Codec, Settings},
    },
};

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../python/supervise/_pool/", $name)))),*]
    };
}

const MODULES: [(&str, &str); 12] = modules![
    "__init__.py",
    "codec.py",
    "fork_check.py",
    "fork_renew.py",
    "fork_server.py",
    "fork_threads.py",
    "large.py",
    "peak.py",
    "prints.py",
    "protocol.py",
    "template.py",
    "worker.py"
];

/// The name of the package, which tasks may see in a traceback.
const PACKAGE: &str = "_supervise_pool";

/// The package in it that makes memory reports.
const AGENT: &str = "agent";

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
    /// `MODULE:FUNCTION` that each worker calls first.
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

/// The files. They are removed when this is dropped.
#[derive(Debug)]
pub struct Files {
    claimed: Claimed,
}

impl Files {
    /// Writes the files into a new private directory.
    ///
    /// # Errors
    /// The file that could not be written.
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

    /// Writes the files that a worker imports to make its first report. Most pools need none.
    ///
    /// # Errors
    /// The file that could not be written.
    pub fn install_agent(&self) -> io::Result<()> {
        let package = self.claimed.directory().subdirectory(PACKAGE, 0o700)?;
        let agent = package.subdirectory(AGENT, 0o700)?;
        for (name, text) in files::MODULES {
            agent.replace(name, text.as_bytes(), 0o600)?;
        }
        Ok(())
    }

    /// The command line of the template; `control` is its end of our socket.
    pub fn argv(&self, python: &Path, orders: &Orders, control: i32) -> Vec<OsString> {
        let settings = Settings {
            protocol: frame::VERSION,
            control,
            codec: match orders.function {
                Some(_) => Codec::Json,
                None => Codec::Pickle,
            },
            function: orders.function.clone(),
            call: orders.call.clone(),
            imports: orders.imports.clone(),
            initializer: orders.initializer.clone(),
            warm: orders.warm,
        };
        vec![
            python.into(),
            "-c".into(),
            RUN.into(),
            template::encode(&settings).into(),
            self.claimed.directory().path().into(),
        ]
    }
}

/// Removes directories of killed pools. In another pid namespace, the pid in a name is another
/// process or none, so the lock decides.
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
    fn the_directory_of_a_killed_pool_is_removed() {
        let below = tempfile::tempdir().unwrap();
        let living = format!("map-{}.pool", std::process::id());
        // No process has this pid: the maximum is 2^22 (proc(5), pid_max).
        for name in ["map-4194305.pool", living.as_str(), "map-shop.pool"] {
            fs::create_dir(below.path().join(name)).unwrap();
        }
        let files = Files::install(below.path(), "map-1").unwrap();
        assert!(!below.path().join("map-4194305.pool").exists());
        assert!(below.path().join(living).exists());
        assert!(below.path().join("map-shop.pool").exists());
        drop(files);
        // A pool in another pid namespace. In this one, no process has its pid.
        let files = Files::install(below.path(), "map-4194305").unwrap();
        drop(Files::install(below.path(), "map-1").unwrap());
        assert!(below.path().join("map-4194305.pool").exists());
        // Another pool with the same pid, in yet another pid namespace.
        let same = Files::install(below.path(), "map-4194305").unwrap();
        assert_ne!(
            files.claimed.directory().path(),
            same.claimed.directory().path()
        );
    }
}
