//! The interpreters that this machine has, beside the one that the environments are made with.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The agent runs on these.
const KNOWN: [&str; 7] = ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14"];

/// One interpreter of each version that is here, by version: from the PATH, and those that pyenv
/// keeps in the home directory.
pub(crate) fn pythons() -> BTreeMap<&'static str, PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    if let Some(home) = env::var_os("HOME") {
        let versions = Path::new(&home).join(".pyenv/versions");
        let found = fs::read_dir(versions).into_iter().flatten().flatten();
        folders.extend(found.map(|entry| entry.path().join("bin")));
    }
    let mut pythons = BTreeMap::new();
    for version in KNOWN {
        let name = format!("python{version}");
        let places = folders.iter().map(|folder| folder.join(&name));
        if let Some(python) = places.into_iter().find(|python| runs(python)) {
            pythons.insert(version, python);
        }
    }
    pythons
}

fn runs(python: &Path) -> bool {
    let output = Command::new(python).args(["-c", ""]).output();
    output.is_ok_and(|output| output.status.success())
}
