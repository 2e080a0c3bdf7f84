//! The rules of the house, checked.
#![expect(
    clippy::unwrap_used,
    reason = "a checkout that cannot be read fails the test"
)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Who may import whom (docs/ARCHITECTURE.md). What is not named here may import everything.
const LAYERS: [(&str, &[&str]); 11] = [
    ("units", &[]),
    ("escape", &[]),
    ("private_dir", &[]),
    ("supervisor", &["units"]),
    ("servers", &["units"]),
    ("config", &["units", "escape", "supervisor", "servers"]),
    (
        "host",
        &["units", "escape", "supervisor", "servers", "private_dir"],
    ),
    (
        "control",
        &["units", "escape", "supervisor", "servers", "private_dir"],
    ),
    ("observe", &["units", "escape", "supervisor", "servers"]),
    (
        "agent",
        &["units", "escape", "supervisor", "servers", "private_dir"],
    ),
    ("queue", &["units", "private_dir"]),
];

/// These hold several sides together.
const JOINTS: [&str; 4] = ["driver", "cli", "main", "lib"];

const LINES_MAX: usize = 500;
const DOOR_LINES_MAX: usize = 320;
const COLUMNS_MAX: usize = 100;
const BYTES_MAX: u64 = 64 << 10;

#[test]
fn a_room_imports_only_what_its_layer_may() {
    let mut wrong = Vec::new();
    for path in rust_files("src") {
        let room = room_of(&path);
        let Some((_, allowed)) = LAYERS.iter().find(|(known, _)| *known == room) else {
            assert!(
                JOINTS.contains(&room.as_str()),
                "{} is in no layer: name its room in LAYERS",
                path.display()
            );
            continue;
        };
        for other in crate_paths(&read(&path)) {
            if other != room && !allowed.contains(&other.as_str()) {
                wrong.push(format!("{}: {room} imports {other}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_layers_are_seen_in_every_way_of_naming_them() {
    let text = "use crate::units::Bytes;\nuse crate::{host, control::Client};\n\
                let x = crate::driver::run();\n// crate::nobody\n";
    let found: Vec<_> = crate_paths(text).into_iter().collect();
    assert_eq!(found, ["control", "driver", "host", "units"]);
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    let mut wrong = Vec::new();
    for path in all_rust_files() {
        let text = read(&path);
        let lines = text.lines().count();
        let is_door = path.ends_with("mod.rs");
        if lines > LINES_MAX || (is_door && lines > DOOR_LINES_MAX) {
            wrong.push(format!("{}: {lines} lines", path.display()));
        }
        if !text.starts_with("//!") {
            wrong.push(format!("{}: does not open with `//!`", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn lines_are_clean() {
    let mut wrong = Vec::new();
    for path in tracked_texts() {
        let is_rust = path.extension().is_some_and(|end| end == "rs");
        for (number, line) in read(&path).lines().enumerate() {
            let place = format!("{}:{}", path.display(), number + 1);
            if line.contains('\t') {
                wrong.push(format!("{place}: a tab"));
            }
            if line.ends_with(' ') {
                wrong.push(format!("{place}: a space at the end"));
            }
            if is_rust && line.chars().count() > COLUMNS_MAX && !is_one_string(line) {
                wrong.push(format!("{place}: over {COLUMNS_MAX} columns"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_file_is_large() {
    let wrong: Vec<_> = tracked_texts()
        .into_iter()
        .filter(|path| fs::metadata(path).unwrap().len() > BYTES_MAX)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn nothing_is_left_to_do() {
    let words = ["TODO", "FIXME", "XXX"];
    let wrong: Vec<_> = all_rust_files()
        .into_iter()
        .filter(|path| !path.ends_with("tidy.rs"))
        .filter(|path| words.iter().any(|word| read(path).contains(word)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn the_changelog_has_a_place_for_what_is_new() {
    let text = read(&root().join("CHANGELOG.md"));
    assert!(text.contains("## [Unreleased]"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| format!("{}: {error}", path.display()))
}

/// `src/host/cgroup/v1.rs` is in the room `host`, `src/lib.rs` is one by itself.
fn room_of(path: &Path) -> String {
    let inner = path.strip_prefix(root().join("src")).unwrap();
    let first = inner.components().next().unwrap().as_os_str();
    let first = first.to_string_lossy();
    first.strip_suffix(".rs").unwrap_or(&first).to_owned()
}

/// The first names after `crate::`, single or in braces, comments left out.
fn crate_paths(text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = BTreeSet::new();
    for (at, key) in code.match_indices("crate::") {
        let rest = &code[at + key.len()..];
        match rest.strip_prefix('{') {
            Some(list) => found.extend(heads_of(list)),
            None => found.extend(name_at(rest)),
        }
    }
    found
}

/// `host, control::{Client, Door}, units}` gives `host`, `control` and `units`.
fn heads_of(list: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let (mut depth, mut is_head) = (1, true);
    for (at, letter) in list.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' => is_head = depth == 1,
            _ if letter.is_whitespace() => {}
            _ if is_head => {
                heads.extend(name_at(&list[at..]));
                is_head = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

/// The module at the beginning of `text`; a type or a macro of the crate root is none.
fn name_at(text: &str) -> Option<String> {
    let end = text
        .find(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .unwrap_or(text.len());
    let name = &text[..end];
    name.starts_with(|letter: char| letter.is_ascii_lowercase())
        .then(|| name.to_owned())
}

/// A string that is not wrapped, since nobody wraps an address or a line of output.
fn is_one_string(line: &str) -> bool {
    let line = line.trim().trim_end_matches([',', ';', ')']);
    let inner = line.strip_prefix("println!(").unwrap_or(line);
    inner.starts_with('"') && inner.ends_with('"')
}

fn all_rust_files() -> Vec<PathBuf> {
    ["src", "tests", "benches", "examples"]
        .into_iter()
        .flat_map(rust_files)
        .collect()
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    files_below(&root().join(folder), &["rs"])
}

/// Everything people write, by its ending.
fn tracked_texts() -> Vec<PathBuf> {
    let ends = ["rs", "md", "toml", "py", "sh", "service", "socket", "conf"];
    let mut texts: Vec<_> = [
        "src", "tests", "benches", "examples", "config", "docs", "systemd",
    ]
    .into_iter()
    .flat_map(|folder| files_below(&root().join(folder), &ends))
    .collect();
    texts.extend(["README.md", "CHANGELOG.md", "Cargo.toml"].map(|name| root().join(name)));
    texts.retain(|path| path.exists());
    texts
}

fn files_below(folder: &Path, ends: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path, ends));
        } else if path
            .extension()
            .is_some_and(|end| ends.iter().any(|known| end == *known))
        {
            files.push(path);
        }
    }
    files.sort();
    files
}
