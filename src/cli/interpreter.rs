//! Chooses the Python interpreter of a pool's workers.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

/// The names of a Python interpreter in an environment, the preferred name first.
const NAMES: [&str; 2] = ["python3", "python"];

/// The facts on which the choice depends.
#[derive(Debug, Default)]
struct Surroundings {
    /// The name or path by which `supervise` was called.
    called: PathBuf,
    /// The executable file of `supervise`, with links resolved.
    own: PathBuf,
    path: OsString,
    /// The activated virtual environment.
    activated: Option<PathBuf>,
}

/// The interpreter `given` with `--python`, or the default.
///
/// # Errors
/// The interpreter does not exist.
pub(super) fn find(given: Option<&Path>) -> Result<PathBuf, String> {
    let here = Surroundings {
        called: env::args_os().next().unwrap_or_default().into(),
        own: env::current_exe().unwrap_or_default(),
        path: env::var_os("PATH").unwrap_or_default(),
        activated: env::var_os("VIRTUAL_ENV").map(PathBuf::from),
    };
    match given {
        Some(given) => on_path(given, &here.path)
            .ok_or_else(|| format!("--python {}: no such program", given.display())),
        None => default(&here).ok_or_else(|| {
            "no `python3` on the PATH. hint: choose an interpreter with --python".to_owned()
        }),
    }
}

fn default(here: &Surroundings) -> Option<PathBuf> {
    let python3 = || on_path(Path::new(NAMES[0]), &here.path);
    let by_name = here.called.components().count() == 1;
    if by_name && here.activated.is_some() {
        // `supervise` may have its own environment (pipx), which does not contain the functions.
        return python3();
    }
    let called = on_path(&here.called, &here.path);
    let executables = called.iter().chain([&here.own]);
    let mut directories = executables.filter_map(|it| it.parent());
    directories.find_map(of_environment).or_else(python3)
}

/// The interpreter in the directory `bin`, if it belongs to an environment (venv, conda).
fn of_environment(bin: &Path) -> Option<PathBuf> {
    let root = bin.parent()?;
    if !root.join("pyvenv.cfg").is_file() && !root.join("conda-meta").is_dir() {
        return None;
    }
    let mut candidates = NAMES.iter().map(|name| bin.join(name));
    candidates.find(|python| python.is_file())
}

fn on_path(program: &Path, path: &OsStr) -> Option<PathBuf> {
    let if_file = |path: &Path| path.is_file().then(|| path.to_owned());
    if program.components().count() > 1 {
        return if_file(program);
    }
    env::split_paths(path).find_map(|dir| if_file(&dir.join(program)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Two environments and a system, each with a `python3` in its `bin`, and with `supervise`
    /// unless it is the project's.
    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for place in ["own", "project", "usr"] {
            let bin = root.path().join(place).join("bin");
            fs::create_dir_all(&bin).unwrap();
            fs::write(bin.join("python3"), "").unwrap();
            if place != "project" {
                fs::write(bin.join("supervise"), "").unwrap();
            }
            if place != "usr" {
                fs::write(root.path().join(place).join("pyvenv.cfg"), "").unwrap();
            }
        }
        root
    }

    /// The name of the directory that contains the chosen interpreter.
    fn chosen(called: &str, own: &str, path: &[&str], activated: Option<&str>) -> String {
        let root = machine();
        let at = |place: &str| root.path().join(place).join("bin");
        let called = match called.split_once('/') {
            Some((place, name)) => at(place).join(name),
            None => called.into(),
        };
        let here = Surroundings {
            called,
            own: at(own).join("supervise"),
            path: env::join_paths(path.iter().map(|place| at(place))).unwrap(),
            activated: activated.map(|place| root.path().join(place)),
        };
        let python = default(&here).unwrap();
        assert_eq!(python.file_name().unwrap(), "python3");
        let place = python.ancestors().nth(2).unwrap();
        place.file_name().unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn the_python_of_the_environment_of_supervise_is_the_default() {
        // Called by its path, regardless of the PATH and the activated environment.
        assert_eq!(chosen("own/supervise", "own", &["usr"], None), "own");
        let others = ["project", "usr"];
        let called = "own/supervise";
        assert_eq!(chosen(called, "own", &others, Some("project")), "own");
        // Called by a link outside the environment, and by a link from inside to a file outside.
        assert_eq!(chosen("usr/supervise", "own", &["usr"], None), "own");
        assert_eq!(chosen("own/supervise", "usr", &["usr"], None), "own");
        // Called by its name.
        assert_eq!(chosen("supervise", "own", &["usr", "own"], None), "own");
    }

    #[test]
    fn outside_of_an_environment_the_python_on_the_path_is_the_default() {
        assert_eq!(chosen("supervise", "usr", &["usr"], None), "usr");
        assert_eq!(
            chosen("usr/supervise", "usr", &["project"], None),
            "project"
        );
    }

    #[test]
    fn called_by_its_name_supervise_prefers_an_activated_environment() {
        let path = ["project", "own", "usr"];
        assert_eq!(
            chosen("supervise", "own", &path, Some("project")),
            "project"
        );
    }

    #[test]
    fn a_missing_python_is_an_error() {
        assert_eq!(default(&Surroundings::default()), None);
        let error = find(Some(Path::new("/nowhere/python"))).unwrap_err();
        assert!(error.contains("--python /nowhere/python"), "{error}");
    }
}
