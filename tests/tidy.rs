//! Checks the rules for source text: layers, sizes, fields of the decider, clean lines.
#![expect(
    clippy::unwrap_used,
    reason = "a checkout that cannot be read fails the test"
)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Which modules each module of `src` may import (docs/ARCHITECTURE.md).
const LAYERS: [(&str, &[&str]); 12] = [
    ("units", &[]),
    ("escape", &[]),
    ("private_dir", &[]),
    ("protocol", &["units"]),
    ("supervisor", &["units", "servers"]),
    ("servers", &["units"]),
    ("config", &["units", "escape", "supervisor", "servers"]),
    (
        "host",
        &[
            "units",
            "escape",
            "supervisor",
            "servers",
            "private_dir",
            "protocol",
        ],
    ),
    (
        "control",
        &["units", "escape", "supervisor", "servers", "private_dir"],
    ),
    ("observe", &["units", "escape", "supervisor", "servers"]),
    (
        "agent",
        &[
            "units",
            "escape",
            "supervisor",
            "servers",
            "private_dir",
            "protocol",
        ],
    ),
    ("queue", &["units", "private_dir", "protocol"]),
];

/// Modules that may import everything.
const UNLAYERED: [&str; 4] = ["driver", "cli", "main", "lib"];

const LINES_MAX: usize = 500;
const MOD_LINES_MAX: usize = 320;
const COLUMNS_MAX: usize = 100;
const BYTES_MAX: u64 = 64 << 10;

#[test]
fn a_module_imports_only_what_its_layer_may() {
    let mut wrong = Vec::new();
    for path in rust_files("src") {
        let module = module_of(&path);
        let Some((_, allowed)) = LAYERS.iter().find(|(known, _)| *known == module) else {
            assert!(
                UNLAYERED.contains(&module.as_str()),
                "{} is in no layer: add its module to LAYERS",
                path.display()
            );
            continue;
        };
        for other in crate_paths(&read(&path)) {
            if other != module && !allowed.contains(&other.as_str()) {
                wrong.push(format!("{}: {module} imports {other}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn imports_are_found_in_every_notation() {
    let text = "use crate::units::Bytes;\nuse crate::{host, control::Client};\n\
                let x = crate::driver::run();\n// crate::comment\n";
    let found: Vec<_> = crate_paths(text).into_iter().collect();
    assert_eq!(found, ["control", "driver", "host", "units"]);
}

/// Data that goes in and out of the decider. Its fields may be read from everywhere.
const DATA: [&str; 6] = [
    "src/supervisor/action.rs",
    "src/supervisor/event.rs",
    "src/supervisor/input.rs",
    "src/supervisor/snapshot.rs",
    "src/supervisor/spec.rs",
    "src/supervisor/pool/input.rs",
];

const FIELDS_MAX: usize = 12;

/// The structs that hold the state of the decider, with the names of their fields.
fn state_structs() -> Vec<(PathBuf, String, Vec<String>)> {
    let mut found = Vec::new();
    for path in decider_files() {
        let text = read(&path);
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let words: Vec<_> = line.split_whitespace().collect();
            let Some(at) = words.iter().position(|word| *word == "struct") else {
                continue;
            };
            if line.starts_with(' ') || !line.ends_with('{') {
                continue;
            }
            let name = words.get(at + 1).copied().unwrap_or_default();
            let body = lines.by_ref().take_while(|line| *line != "}");
            let fields = body.filter_map(|line| {
                let line = line.strip_prefix("    ")?;
                let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
                let line = line.strip_prefix("pub(super) ").unwrap_or(line);
                let line = line.strip_prefix("pub ").unwrap_or(line);
                let (field, _) = line.split_once(": ")?;
                let is_name = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
                field.chars().all(is_name).then(|| field.to_owned())
            });
            found.push((path.clone(), name.to_owned(), fields.collect()));
        }
    }
    found
}

fn decider_files() -> impl Iterator<Item = PathBuf> {
    let files = rust_files("src/supervisor").into_iter();
    files.filter(|path| {
        let name = path.to_string_lossy();
        let is_data = DATA.iter().any(|data| name.ends_with(data));
        let is_test = name.ends_with("tests.rs") || name.ends_with("fixture.rs");
        !is_data && !is_test
    })
}

#[test]
fn no_struct_of_the_decider_has_many_fields() {
    let structs = state_structs();
    assert!(structs.len() > 40, "only {} structs found", structs.len());
    let large: Vec<_> = structs
        .iter()
        .filter(|(path, ..)| !path.ends_with("pool/spec.rs"))
        .filter(|(.., fields)| fields.len() > FIELDS_MAX)
        .map(|(path, name, fields)| format!("{}: {name} has {}", path.display(), fields.len()))
        .collect();
    assert!(large.is_empty(), "{large:#?}");
}

#[test]
fn no_field_of_the_decider_is_written_from_outside_its_module() {
    let structs = state_structs();
    let mut wrong = Vec::new();
    for path in decider_files() {
        // Fields of structs that are declared in this file, or in a module above it.
        let own = |declared: &Path| {
            let module = declared.parent().unwrap();
            *declared == path || (declared.ends_with("mod.rs") && path.starts_with(module))
        };
        let own: BTreeSet<_> = structs
            .iter()
            .filter(|(declared, ..)| own(declared))
            .flat_map(|(.., fields)| fields)
            .collect();
        let others: BTreeSet<_> = structs
            .iter()
            .flat_map(|(.., fields)| fields)
            .filter(|field| !own.contains(field))
            .collect();
        let text = read(&path);
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let line = line.trim();
            let assigned = [" = ", " += ", " -= ", " |= "]
                .iter()
                .find_map(|sign| line.split_once(sign))
                .filter(|(place, _)| !place.contains(' ') || place.starts_with('*'))
                .and_then(|(place, _)| place.rsplit_once('.'));
            if let Some((_, field)) = assigned
                && others.contains(&field.to_owned())
            {
                wrong.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_are_short_and_start_with_a_doc_comment() {
    let mut wrong = Vec::new();
    for path in all_rust_files() {
        let text = read(&path);
        let lines = text.lines().count();
        let is_mod = path.ends_with("mod.rs");
        if lines > LINES_MAX || (is_mod && lines > MOD_LINES_MAX) {
            wrong.push(format!("{}: {lines} lines", path.display()));
        }
        if !text.starts_with("//!") {
            wrong.push(format!("{}: does not start with `//!`", path.display()));
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
fn no_todo_is_left() {
    let words = ["TODO", "FIXME", "XXX"];
    let wrong: Vec<_> = all_rust_files()
        .into_iter()
        .filter(|path| !path.ends_with("tidy.rs"))
        .filter(|path| words.iter().any(|word| read(path).contains(word)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn the_changelog_has_an_unreleased_section() {
    let text = read(&root().join("CHANGELOG.md"));
    assert!(text.contains("## [Unreleased]"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| format!("{}: {error}", path.display()))
}

/// `src/host/cgroup/v1.rs` is in the module `host`, and `src/lib.rs` in `lib`.
fn module_of(path: &Path) -> String {
    let inner = path.strip_prefix(root().join("src")).unwrap();
    let first = inner.components().next().unwrap().as_os_str();
    let first = first.to_string_lossy();
    first.strip_suffix(".rs").unwrap_or(&first).to_owned()
}

/// The first names after `crate::`, single or in braces, except in comments.
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

/// `host, control::{Client, Gate}, units}` gives `host`, `control` and `units`.
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

/// The module at the beginning of `text`. A type or a macro of the crate root is not a module.
fn name_at(text: &str) -> Option<String> {
    let end = text
        .find(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .unwrap_or(text.len());
    let name = &text[..end];
    name.starts_with(|letter: char| letter.is_ascii_lowercase())
        .then(|| name.to_owned())
}

/// Whether the line is a single string. Addresses and lines of output are not wrapped.
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

/// The text files in the repository, found by their extension.
fn tracked_texts() -> Vec<PathBuf> {
    let extensions = ["rs", "md", "toml", "py", "sh", "service", "socket", "conf"];
    let mut texts: Vec<_> = [
        "src", "tests", "benches", "examples", "config", "docs", "systemd",
    ]
    .into_iter()
    .flat_map(|folder| files_below(&root().join(folder), &extensions))
    .collect();
    texts.extend(
        ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Cargo.toml"]
            .map(|name| root().join(name)),
    );
    texts.retain(|path| path.exists());
    texts
}

fn files_below(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path, extensions));
        } else if path
            .extension()
            .is_some_and(|end| extensions.iter().any(|known| end == *known))
        {
            files.push(path);
        }
    }
    files.sort();
    files
}
