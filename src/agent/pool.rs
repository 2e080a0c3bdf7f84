//! The Python side of a pool: its files, and the command that runs its template.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde_json::json;

use super::files::about;

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../python/supervise/_pool/", $name)))),*]
    };
}

const MODULES: [(&str, &str); 5] = modules![
    "__init__.py",
    "codec.py",
    "nest.py",
    "template.py",
    "worker.py"
];

/// The package as tasks would see it in a traceback.
const PACKAGE: &str = "_supervise_pool";

const RUN: &str = "import sys; sys.path.insert(0, sys.argv[2]); \
                   from _supervise_pool import template; template.run()";

/// What the Python side is told.
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
    /// Import in the template, once; else in each worker.
    pub warm: bool,
}

/// The files, for as long as it lives.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
}

impl Files {
    /// Writes them into a new directory that is ours alone.
    ///
    /// # Errors
    /// Names the file that could not be written.
    pub fn install(below: &Path, name: &str) -> io::Result<Self> {
        let path = below.join(format!("{name}.pool"));
        let _ = fs::remove_dir_all(&path);
        sweep(below);
        let package = path.join(PACKAGE);
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&package)
            .map_err(|error| about(&package, "create", error))?;
        let files = Self { path };
        for (name, text) in MODULES {
            let file = package.join(name);
            fs::write(&file, text).map_err(|error| about(&file, "write", error))?;
        }
        Ok(files)
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
            self.path.clone().into(),
        ]
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.path);
    }
}

/// Removes what pools have left that were killed. A name ends with the number of its process.
fn sweep(below: &Path) {
    let entries = fs::read_dir(below).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("map-")?.strip_suffix(".pool"))
            .and_then(|number| number.parse::<u32>().ok());
        if number.is_some_and(|number| !Path::new(&format!("/proc/{number}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
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
    }
}
