//! The leaking apps. Each describes itself with `# KEY: VALUE` lines at its top, and marks the
//! lines that leak with `# <-- leaks here`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The mark at the end of a line that allocates leaked memory.
const MARK: &str = "# <-- leaks here";

/// Requests a second, if the app has no `rate`.
const RATE: f64 = 60.0;

/// The expected fate of the worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// It is recycled at its ceiling.
    Recycled,
    /// It frees enough memory every time, and is never recycled.
    Stays,
    /// A job that is killed at its cap.
    Capped,
}

/// A leaking app and its right answer.
#[derive(Clone, Debug)]
pub(crate) struct App {
    /// The name of its module.
    pub name: String,
    /// What leaks.
    pub leak: String,
    /// The command that serves it, with `{module}` for the module. `job` for a script.
    pub serve: Vec<String>,
    /// Options of `supervise`.
    pub limits: Vec<String>,
    /// Requests a second.
    pub rate: f64,
    /// The verdicts that are right.
    pub verdicts: Vec<String>,
    /// The names from which the growth is reachable. Any of them is right.
    pub holders: Vec<String>,
    /// The file and line that allocate the growth. Any of them is right.
    pub lines: BTreeSet<(String, u64)>,
    /// Whether the report must name the line or the holder. False if Python cannot know them.
    pub needs_place: bool,
    /// Whether the first suspect must name the line.
    pub needs_first: bool,
    /// A part of the advice.
    pub advice: String,
    /// The expected fate of the worker.
    pub outcome: Outcome,
}

impl App {
    /// All apps, sorted by name.
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
            needs_place: words("line") != ["-"],
            needs_first: words("rank") == ["1"],
            advice: words("advice").join(" "),
            outcome,
            name,
        }
    }

    /// The number of workers that serve it.
    pub(crate) fn workers(&self) -> usize {
        let mut words = self.serve.iter();
        words.find(|word| ["-w", "--workers"].contains(&word.as_str()));
        words.next().map_or(1, |count| {
            let why = |error| panic!("{}: {count} workers: {error}", self.name);
            count.parse().unwrap_or_else(why)
        })
    }
}

/// The folder of the apps.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/leaks/apps")
}

/// The marked lines of a file.
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
