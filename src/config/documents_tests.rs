//! Tests that the documents and the example files agree with the code, and that the effective
//! configuration can be loaded again.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use proptest::prelude::*;

use super::{
    render::literal,
    settings::{Settings, Value},
    *,
};
use crate::{
    servers,
    supervisor::spec::{Kind, RestartWhen},
    units::golden,
};

const MANUAL: &str = include_str!("../../docs/configuration.md");

/// A fake machine that has every program and every directory.
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
    let command_line = CommandLine {
        config: Some(path),
        ..CommandLine::default()
    };
    let environ = [("PATH".into(), "/bin".into())];
    match load(&command_line, environ, &Anything) {
        Ok(loaded) => loaded.spec,
        Err(error) => panic!("{error}\n{text}"),
    }
}

/// The settings in a file as strings.
fn settings_of(text: &str) -> BTreeMap<String, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("supervise.toml");
    std::fs::write(&path, text).unwrap();
    let mut settings = Settings::default();
    file::read(&path, &mut settings).unwrap();
    assert!(
        settings.diagnostics.is_empty(),
        "{:?}",
        settings.diagnostics
    );
    let shown = |value: &Value| match value {
        Value::Text(text) => text.clone(),
        other => other.to_string(),
    };
    let all = settings.all.values();
    all.map(|setting| (setting.key.clone(), shown(&setting.value)))
        .collect()
}

const MODES: [Mode; 2] = [Mode::Service, Mode::Pool];

fn keys_of(mode: Mode) -> impl Iterator<Item = &'static Key> {
    keys().filter(move |key| key.applies_to(mode))
}

#[test]
fn the_printed_file_has_every_key_with_its_default() {
    for mode in MODES {
        let defaults: BTreeMap<String, String> = keys_of(mode)
            .filter(|key| !key.default(mode).is_empty())
            .map(|key| (key.name.to_owned(), key.default(mode).to_owned()))
            .collect();
        assert_eq!(settings_of(&template(mode)), defaults);
    }
}

/// The printed file, with the examples of keys without a default as settings.
fn uncommented(mode: Mode) -> String {
    let text = template(mode);
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|c: char| c.is_ascii_alphabetic()) => key,
        _ => line,
    });
    lines.collect::<Vec<&str>>().join("\n")
}

#[test]
fn the_printed_file_shows_the_keys_without_a_default_and_loads() {
    for mode in MODES {
        let all = settings_of(&uncommented(mode));
        for key in keys_of(mode) {
            let shown = |name: &String| match key.name.strip_suffix('*') {
                Some(table) => name.starts_with(table),
                None => name == key.name,
            };
            assert!(all.keys().any(shown), "{} is not shown", key.name);
        }
        assert_eq!(all.len(), keys_of(mode).count());
        read(&uncommented(mode));
    }
}

#[test]
fn the_example_file_has_every_key() {
    golden::check("../../config/supervise.toml", &template(Mode::Service));
}

#[test]
fn effective_configurations_equal_the_golden_files() {
    let shop = "name = \"shop\"\ncommand = [\"gunicorn\", \"-w\", \"4\", \"shop.wsgi\"]\n";
    for (name, text) in [
        ("effective-defaults.toml", shop.to_owned()),
        ("effective-every-key.toml", uncommented(Mode::Service)),
        ("effective-pool.toml", uncommented(Mode::Pool)),
    ] {
        golden::check(name, &render(&read(&text)));
    }
}

#[test]
fn the_help_names_every_server() {
    let key = keys().find(|key| key.name == "server").unwrap();
    let known = servers::PROFILES.map(|server| server.name);
    assert_eq!(key.value, format!("auto|none|{}", known.join("|")));
}

/// The rows of a table of keys, as in docs/configuration.md.
fn rows(table: &str) -> String {
    let code = |text: String| format!("`{}`", text.replace('|', r"\|"));
    let mut text = String::new();
    for key in keys().filter(|key| key.table() == table) {
        let flag = match key.flag {
            "" => None,
            flag => Some(format!("--{flag} {}", key.value).trim_end().to_owned()),
        };
        let mode = MODES
            .into_iter()
            .find(|mode| key.applies_to(*mode))
            .unwrap();
        let default = Some(key.default(mode)).filter(|text| !text.is_empty());
        let cells = [
            Some(key.name.to_owned()),
            flag,
            key.variable(),
            default.map(str::to_owned),
        ]
        .map(|cell| cell.map_or_else(|| "–".to_owned(), code));
        let help = key.help.replace('|', r"\|");
        let note = match key.old {
            Some((old, _)) => format!(" (old name: `{old}`)"),
            None => String::new(),
        };
        text += &format!("| {} | {help}{note} |\n", cells.join(" | "));
    }
    text
}

#[test]
fn the_manual_has_a_row_for_every_key() {
    let mut tables: Vec<&str> = keys().map(Key::table).collect();
    tables.dedup();
    let mut tables = tables.into_iter();
    let mut text = String::new();
    for line in MANUAL.lines().filter(|line| !line.starts_with("| `")) {
        text += &format!("{line}\n");
        if line.starts_with("|---|") {
            text += &rows(
                tables
                    .next()
                    .expect("there are as many tables as in the code"),
            );
        }
    }
    assert_eq!(tables.next(), None);
    golden::check("../../docs/configuration.md", &text);
}

#[test]
fn the_examples_load() {
    let flask = read(include_str!("../../config/gunicorn-flask.toml"));
    let django = read(include_str!("../../config/gunicorn-django.toml"));
    let etl = read(include_str!("../../config/etl.toml"));
    assert!(read(include_str!("../../config/pool.toml")).pool.is_some());
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

/// A file with another value than the default for every key.
fn every_example(mode: Mode, except: &str) -> toml::Table {
    let mut text = String::new();
    let mut table = "";
    for key in keys_of(mode).filter(|key| key.name != except) {
        if key.table() != table {
            table = key.table();
            text += &format!("[{table}]\n");
        }
        text += &match key.is_map() {
            true => format!("{}\n", key.example),
            false => format!("{} = {}\n", key.leaf(), literal(key, mode, key.example)),
        };
    }
    text.parse().unwrap()
}

#[test]
fn the_effective_value_of_every_key_is_the_written_one() {
    for mode in MODES {
        // These two contradict each other.
        for except in ["pool.plain", "pool.call"] {
            let mut every = every_example(mode, except);
            if mode == Mode::Service {
                // gunicorn is not multiplied.
                every.insert("copies".to_owned(), "none".into());
            }
            let shown: toml::Table = render(&read(&every.to_string())).parse().unwrap();
            if let Some(toml::Value::Table(pool)) = every.get_mut("pool") {
                let default = shown["pool"][except.trim_start_matches("pool.")].clone();
                pool.insert(except.trim_start_matches("pool.").to_owned(), default);
            }
            assert_eq!(shown.to_string(), every.to_string());
        }
        for key in keys_of(mode).filter(|key| key.field.set.is_some()) {
            let default = key.default(mode);
            assert_ne!(key.example, default, "{}", key.name);
            for text in [key.example, default] {
                let literal = literal(key, mode, text);
                let plain = literal.trim_matches(['[', ']']).trim_matches('"');
                assert_eq!(plain, text, "{}", key.name);
            }
        }
    }
}

#[test]
fn the_effective_value_of_a_key_that_is_not_set_is_its_default() {
    for (mode, least) in [
        (
            Mode::Service,
            "server = \"none\"\ncommand = [\"python\"]\nname = \"app\"\n",
        ),
        (Mode::Pool, "name = \"app\"\n"),
    ] {
        let least = format!("{least}control.socket = \"/run/app.sock\"\n");
        let least = format!("{least}leaks.directory = \"/srv\"\n");
        let text = match mode {
            Mode::Service => least,
            Mode::Pool => format!("{least}[pool]\n"),
        };
        let mut expected: toml::Table = text.parse().unwrap();
        let defaults: toml::Table = template(mode).parse().unwrap();
        for (name, value) in defaults {
            match (expected.get_mut(&name), value) {
                (Some(toml::Value::Table(table)), toml::Value::Table(more)) => table.extend(more),
                (Some(_), _) => {}
                (None, toml::Value::Table(table)) if table.is_empty() => {}
                (None, value) => drop(expected.insert(name, value)),
            }
        }
        assert_eq!(render(&read(&text)), expected.to_string());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_effective_configuration_loads_again_unchanged(
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
        let command_line = CommandLine {
            is_pool: false,
            config: None,
            command: vec!["python".into(), word.into()],
            flags: flags.iter().map(|(key, text)| Setting::flag(*key, key, text)).collect(),
        };
        let environ = [("PATH".into(), "/bin".into())];
        let mut spec = load(&command_line, environ, &Anything).unwrap().spec;
        let shown = render(&spec);
        // The effective configuration contains the kind.
        spec.kind_is_guessed = false;
        spec.overlap = false;
        prop_assert_eq!(format!("{:?}", read(&shown)), format!("{spec:?}"), "{}", shown);
    }
}
