//! Which Python runs the workers of a pool.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

/// The names of an environment's interpreter.
const NAMES: [&str; 2] = ["python3", "python"];

/// What the choice depends on.
#[derive(Debug, Default)]
struct Surroundings {
    /// How we were called.
    called: PathBuf,
    /// Our own file, links resolved.
    own: PathBuf,
    path: OsString,
    /// The environment that was activated.
    activated: Option<PathBuf>,
}

/// The interpreter that was given, or else the one to take.
///
/// # Errors
/// Says what is not there.
pub(super) fn find(given: Option<&Path>) -> Result<PathBuf, String> {
    let here = Surroundings {
        called: env::args_os().next().unwrap_or_default().into(),
        own: env::current_exe().unwrap_or_default(),
        path: env::var_os("PATH").unwrap_or_default(),
        activated: env::var_os("VIRTUAL_ENV").map(PathBuf::from),
    };
    match given {
        Some(given) => on_path(given, &here.path)
            .ok_or_else(|| format!("--python {}: there is no such program", given.display())),
        None => chosen(&here).ok_or_else(|| {
            "there is no `python3` on the PATH. hint: name the interpreter with --python".to_owned()
        }),
    }
}

fn chosen(here: &Surroundings) -> Option<PathBuf> {
    let python3 = || on_path(Path::new(NAMES[0]), &here.path);
    let by_name = here.called.components().count() == 1;
    if by_name && here.activated.is_some() {
        // `supervise` may be in an environment of its own (pipx); the functions are in this one.
        return python3();
    }
    let called = on_path(&here.called, &here.path);
    let places = called.iter().chain([&here.own]);
    let own = places.filter_map(|it| it.parent()).find_map(of_environment);
    own.or_else(python3)
}

/// The interpreter beside us, where `bin` is that of an environment (venv, conda).
fn of_environment(bin: &Path) -> Option<PathBuf> {
    let root = bin.parent()?;
    let is_one = root.join("pyvenv.cfg").is_file() || root.join("conda-meta").is_dir();
    let mut all = NAMES.iter().map(|name| bin.join(name));
    all.find(|python| is_one && python.is_file())
}

fn on_path(program: &Path, path: &OsStr) -> Option<PathBuf> {
    let is_there = |path: &Path| path.is_file().then(|| path.to_owned());
    if program.components().count() > 1 {
        return is_there(program);
    }
    env::split_paths(path).find_map(|dir| is_there(&dir.join(program)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Two environments and a system, each with `supervise` and `python3` in its `bin`.
    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for place in ["own", "project", "usr"] {
            let bin = root.path().join(place).join("bin");
            fs::create_dir_all(&bin).unwrap();
            for name in ["python3", "supervise"] {
                fs::write(bin.join(name), "").unwrap();
            }
            if place != "usr" {
                fs::write(root.path().join(place).join("pyvenv.cfg"), "").unwrap();
            }
        }
        root
    }

    /// The place whose Python is taken.
    fn taken(called: &str, own: &str, path: &[&str], activated: Option<&str>) -> String {
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
        let python = chosen(&here).unwrap();
        assert_eq!(python.file_name().unwrap(), "python3");
        let place = python.ancestors().nth(2).unwrap();
        place.file_name().unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn the_python_of_our_own_environment_is_taken() {
        // By its path, whatever is on the PATH or activated.
        assert_eq!(taken("own/supervise", "own", &["usr"], None), "own");
        let others = ["project", "usr"];
        let called = "own/supervise";
        assert_eq!(taken(called, "own", &others, Some("project")), "own");
        // By a link from elsewhere, and by a link in the environment to a file elsewhere.
        assert_eq!(taken("usr/supervise", "own", &["usr"], None), "own");
        assert_eq!(taken("own/supervise", "usr", &["usr"], None), "own");
        // By its name.
        assert_eq!(taken("supervise", "own", &["usr", "own"], None), "own");
    }

    #[test]
    fn outside_of_an_environment_the_path_says_which_python_is_taken() {
        assert_eq!(taken("supervise", "usr", &["usr"], None), "usr");
        assert_eq!(taken("usr/supervise", "usr", &["project"], None), "project");
    }

    #[test]
    fn called_by_its_name_an_activated_environment_comes_first() {
        let path = ["project", "own", "usr"];
        assert_eq!(taken("supervise", "own", &path, Some("project")), "project");
    }

    #[test]
    fn without_a_python_it_is_said() {
        assert_eq!(chosen(&Surroundings::default()), None);
        let error = find(Some(Path::new("/nowhere/python"))).unwrap_err();
        assert!(error.contains("--python /nowhere/python"), "{error}");
    }
}
