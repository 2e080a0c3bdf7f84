//! Whether the shown files and the documents say what the code says, and what is shown loads again.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use proptest::prelude::*;

use super::{
    wish::{Book, Value},
    *,
};
use crate::{
    supervisor::spec::{Kind, RestartWhen},
    units::golden,
};

const FULL: &str = include_str!("../../config/supervise.toml");
const MANUAL: &str = include_str!("../../docs/configuration.md");

/// Has every program and every directory.
struct Anything;

impl Facts for Anything {
    fn uid(&self) -> u32 {
        0
    }

    fn here(&self) -> PathBuf {
        "/".into()
    }

    fn user_exists(&self, _: &str) -> bool {
        true
    }

    fn unusable(&self, _: &Path) -> Option<String> {
        None
    }

    fn entry(&self, path: &Path) -> Entry {
        if path.starts_with("/srv") {
            Entry::Directory
        } else {
            Entry::Program
        }
    }
}

fn read(text: &str) -> Spec {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shown.toml");
    std::fs::write(&path, text).unwrap();
    let wishes = Wishes {
        config: Some(path),
        ..Wishes::default()
    };
    let environ = [("PATH".into(), "/bin".into())];
    match load(&wishes, environ, &Anything) {
        Ok(loaded) => loaded.spec,
        Err(error) => panic!("{error}\n{text}"),
    }
}

/// The wishes in a file, as texts.
fn wished(text: &str) -> BTreeMap<String, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("supervise.toml");
    std::fs::write(&path, text).unwrap();
    let mut book = Book::default();
    file::read(&path, &mut book).unwrap();
    assert!(book.complaints.is_empty(), "{:?}", book.complaints);
    let shown = |value: &Value| match value {
        Value::Text(text) => text.clone(),
        other => other.to_string(),
    };
    let wishes = book.wishes.values();
    wishes
        .map(|wish| (wish.key.clone(), shown(&wish.value)))
        .collect()
}

#[test]
fn the_full_file_has_every_key_with_its_default() {
    let live = wished(FULL);
    let defaults: BTreeMap<String, String> = KEYS
        .iter()
        .filter(|key| !key.default.is_empty())
        .map(|key| (key.name.to_owned(), key.default.to_owned()))
        .collect();
    assert_eq!(live, defaults);
}

#[test]
fn the_full_file_shows_the_keys_without_a_default_in_their_place() {
    let uncommented: Vec<&str> = FULL
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if key.starts_with(|c: char| c.is_ascii_alphabetic()) => key,
            _ => line,
        })
        .collect();
    let all = wished(&uncommented.join("\n"));
    for key in &KEYS {
        let shown = |name: &String| match key.name.strip_suffix('*') {
            Some(table) => name.starts_with(table),
            None => name == key.name,
        };
        assert!(all.keys().any(shown), "{} is not shown", key.name);
    }
    assert_eq!(all.len(), KEYS.len());
}

#[test]
fn the_manual_has_a_row_for_every_key_and_no_other() {
    let code = |text: String| format!("`{}`", text.replace('|', r"\|"));
    let rows: Vec<&str> = MANUAL
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    for (key, row) in KEYS.iter().zip(&rows) {
        let flag = match key.flag {
            "" => None,
            flag => Some(format!("--{flag} {}", key.value).trim_end().to_owned()),
        };
        let default = Some(key.default).filter(|text| !text.is_empty());
        let cells = [
            Some(key.name.to_owned()),
            flag,
            key.variable(),
            default.map(str::to_owned),
        ]
        .map(|cell| cell.map_or_else(|| "–".to_owned(), code));
        let expected = format!("| {} | ", cells.join(" | "));
        assert!(row.starts_with(&expected), "{row}\nis not\n{expected}");
    }
    assert_eq!(rows.len(), KEYS.len());
}

#[test]
fn the_examples_load() {
    let flask = read(include_str!("../../config/gunicorn-flask.toml"));
    let django = read(include_str!("../../config/gunicorn-django.toml"));
    let etl = read(include_str!("../../config/etl.toml"));
    assert!(matches!(
        (flask.kind, django.kind),
        (Kind::Server(_), Kind::Server(_))
    ));
    assert_eq!(
        (etl.kind, etl.restart.when),
        (Kind::Single, RestartWhen::Never)
    );
    assert!(judge(&flask, crate::units::Bytes::mib(1)).is_ok());
}

#[test]
fn what_is_shown_has_the_keys_that_are_promised() {
    let least = read("command = [\"python\"]\ncontrol.socket = \"/run/app.sock\"\n");
    golden::check("effective-defaults.toml", &render(&least));
    let every = read(include_str!("../../tests/golden/every-key.toml"));
    golden::check("effective-every-key.toml", &render(&every));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_shown_loads_again_and_is_the_same(
        (ceiling, more) in (1_u64 << 20..1 << 40, 0_u64..1 << 40),
        percent in 1_u32..=1000,
        age in 1_u64..1 << 40,
        jitter in 0.0..=1.0_f64,
        soft in proptest::option::of(0..u64::MAX),
        word in "[^\0]{0,12}",
        ready in "(auto|notify|tcp:a:[1-9]|http://a/[a-z]{0,3}|delay:[0-9]ms)",
        measure in "(private|rss|pss|cgroup)",
    ) {
        let age = Duration::from_millis(age);
        let age = humantime::format_duration(age).to_string();
        let flags = [
            ("memory.ceiling", ceiling.to_string()),
            ("memory.cap", ceiling.saturating_add(more).to_string()),
            ("memory.budget", format!("{}%", f64::from(percent) / 10.0)),
            ("memory.measure", measure),
            ("recycle.min_age", "0s".to_owned()),
            ("recycle.max_age", age),
            ("recycle.jitter", jitter.to_string()),
            ("rlimit.nofile", soft.map_or("unlimited".to_owned(), |soft| soft.to_string())),
            ("env.WORD", word.clone()),
            ("ready.when", ready),
            ("control.metrics", "9100".to_owned()),
            ("control.hosts", "shop.example,shop".to_owned()),
            ("control.token_file", "/run/token".to_owned()),
            ("directory", "/srv/shop".to_owned()),
            ("listen", ":8000,localhost:80,unix:run/http".to_owned()),
        ];
        let wishes = Wishes {
            config: None,
            command: vec!["python".into(), word.into()],
            flags: flags.iter().map(|(key, text)| Wish::flag(*key, key, text)).collect(),
        };
        let environ = [("PATH".into(), "/bin".into())];
        let mut spec = load(&wishes, environ, &Anything).unwrap().spec;
        let shown = render(&spec);
        // What is shown names the kind.
        spec.kind_is_guessed = false;
        prop_assert_eq!(format!("{:?}", read(&shown)), format!("{spec:?}"), "{}", shown);
    }
}
