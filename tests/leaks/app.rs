//! The apps, and what their heads say: `# KEY: VALUE` lines, and `# <-- leaks here` at the lines.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// At the end of a line that allocates what leaks.
const MARK: &str = "# <-- leaks here";

/// Requests a second, if the app does not say how many.
const RATE: f64 = 60.0;

/// What is to become of the worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// Its ceiling ends it.
    Recycled,
    /// It gives enough back, every time, and is never recycled.
    Stays,
    /// A job that is ended by its cap.
    Capped,
}

/// One leaking app and its right answer.
#[derive(Clone, Debug)]
pub(crate) struct App {
    /// The module.
    pub name: String,
    /// What leaks, in words.
    pub leak: String,
    /// The words that serve it, `{module}` among them; `job` for a script.
    pub serve: Vec<String>,
    /// Options of `supervise`.
    pub limits: Vec<String>,
    /// Requests a second.
    pub rate: f64,
    /// Any of them is right.
    pub verdicts: Vec<String>,
    /// Names from which the growth is reachable; any of them is right.
    pub holders: Vec<String>,
    /// File and line of what allocates the growth; any of them is right.
    pub lines: BTreeSet<(String, u64)>,
    /// Whether the line or the holder has to be found: not where nothing in Python knows.
    pub asks_for_place: bool,
    /// What is to become of the worker.
    pub outcome: Outcome,
}

impl App {
    /// All of them, by name.
    pub(crate) fn all() -> Vec<Self> {
        let entries = fs::read_dir(folder()).expect("read tests/leaks/apps");
        let paths = entries.map(|entry| entry.expect("read tests/leaks/apps").path());
        let mut apps: Vec<_> = paths
            .filter(|path| path.extension().is_some_and(|end| end == "py"))
            .map(|path| Self::read(&path))
            .collect();
        apps.sort_by(|one, other| one.name.cmp(&other.name));
        apps
    }

    fn read(path: &Path) -> Self {
        let name = path.file_stem().expect("it ends in .py");
        let name = name.to_string_lossy().into_owned();
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let head: BTreeMap<_, _> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# ")?.split_once(": "))
            .collect();
        let words = |key: &str| -> Vec<String> {
            let value = head.get(key).copied().unwrap_or_default();
            value.split_whitespace().map(str::to_owned).collect()
        };
        let mut lines = marks(path);
        for other in words("also") {
            lines.extend(marks(&folder().join(other)));
        }
        let outcome = match head.get("outcome").copied() {
            Some("recycled") => Outcome::Recycled,
            Some("stays") => Outcome::Stays,
            Some("capped") => Outcome::Capped,
            other => panic!("{name}: outcome {other:?}"),
        };
        let rate = head.get("rate").map(|rate| rate.parse());
        Self {
            leak: words("leak").join(" "),
            serve: words("serve"),
            limits: words("limits"),
            rate: rate.map_or(RATE, |rate| rate.unwrap_or_else(|_| panic!("{name}: rate"))),
            verdicts: words("verdict"),
            holders: words("holder")
                .into_iter()
                .filter(|holder| holder != "-")
                .collect(),
            lines,
            asks_for_place: words("line") != ["-"],
            outcome,
            name,
        }
    }

    /// How many workers serve it.
    pub(crate) fn workers(&self) -> usize {
        let mut words = self.serve.iter();
        words.find(|word| ["-w", "--workers"].contains(&word.as_str()));
        words.next().map_or(1, |count| {
            let why = |error| panic!("{}: {count} workers: {error}", self.name);
            count.parse().unwrap_or_else(why)
        })
    }
}

/// Where they are.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/leaks/apps")
}

/// The lines of a file that are marked.
fn marks(path: &Path) -> BTreeSet<(String, u64)> {
    let file = path.file_name().expect("it is a file");
    let file = file.to_string_lossy().into_owned();
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"));
    (1..)
        .zip(text.lines())
        .filter(|(_, line)| line.ends_with(MARK))
        .map(|(number, _)| (file.clone(), number))
        .collect()
}
