//! Tests of the settings of a pool, and of old names of keys.

use std::fs;

use super::{tests::Pretend, *};
use crate::{
    supervisor::{
        pool::spec::{Call, PoolSettings, StartMethod},
        spec::Limit,
    },
    units::{Bytes, Size},
};

/// Loads a file with this text, flags and variables.
fn load_text(
    is_pool: bool,
    text: &str,
    flags: &[(&str, &str)],
    environ: &[(&str, &str)],
) -> Result<Loaded, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shop.toml");
    fs::write(&path, text).unwrap();
    let flags = flags.iter().map(|(flag, text)| {
        let key = keys().find(|key| key.flag == *flag).unwrap();
        Setting::flag(key.name, flag, *text)
    });
    let command_line = CommandLine {
        is_pool,
        config: Some(path),
        command: if is_pool || text.contains("[pool]") {
            Vec::new()
        } else {
            vec!["python".into()]
        },
        flags: flags.collect(),
    };
    let environ = environ.iter();
    let environ = environ.map(|(name, value)| (name.into(), value.into()));
    load(&command_line, environ, &Pretend).map_err(|error| {
        let text = error.to_string();
        let start = text.find("shop.toml").unwrap_or(0);
        format!("{} ({})", &text[start..], error.status())
    })
}

fn pool(loaded: &Loaded) -> &PoolSettings {
    loaded.spec.pool.as_ref().unwrap()
}

#[test]
fn a_pool_without_settings_has_the_defaults() {
    let loaded = load_text(true, "", &[], &[]).unwrap();
    let settings = pool(&loaded);
    assert_eq!((settings.workers, settings.batch), (None, None));
    assert_eq!((settings.retries, settings.oom_retries), (0, 1));
    assert_eq!(
        (settings.start, settings.call),
        (StartMethod::Auto, Call::One)
    );
    let spec = &loaded.spec;
    assert_eq!(spec.memory.ceiling, Limit::Auto);
    assert_eq!(spec.memory.budget, Limit::At(Size::Percent(80.0)));
    let name = "executor";
    assert_eq!(spec.name, name);
    let directory = Path::new("/tmp/supervise-1000");
    assert_eq!(settings.directory, directory);
    assert_eq!(spec.control.socket, socket_in(directory, name));
}

#[test]
fn a_file_with_a_table_pool_is_for_a_pool() {
    let text = "name = \"etl\"\n[memory]\ncap = \"2G\"\n[recycle]\nmax_tasks = 100\n[pool]\n\
                function = \"etl:convert\"\nworkers = 4\nimports = [\"numpy\"]\nplain = true";
    let environ = [
        ("SUPERVISE_RETRIES", "3"),
        ("SUPERVISE_RESTART", "no such value"),
    ];
    let loaded = load_text(false, text, &[("workers", "8")], &environ).unwrap();
    let settings = pool(&loaded);
    assert_eq!(settings.function.as_deref(), Some("etl:convert"));
    assert_eq!((settings.workers, settings.retries), (Some(8), 3));
    assert_eq!(
        (settings.imports.as_slice(), settings.is_plain),
        (&["numpy".to_owned()][..], true)
    );
    assert_eq!(loaded.spec.recycle.max_tasks, Some(100));
    assert_eq!(
        loaded.spec.memory.cap,
        Limit::At(Size::Bytes(Bytes::mib(2048)))
    );
    assert_eq!(
        loaded.spec.control.socket,
        Path::new("/tmp/supervise-1000/etl.sock")
    );
    assert!(judge(&loaded.spec, Bytes::mib(1024)).is_ok());
}

#[test]
fn a_key_that_does_not_apply_is_one_error() {
    let error_of = |is_pool, text| load_text(is_pool, text, &[], &[]).unwrap_err();
    assert_eq!(
        error_of(true, "[ready]\ntimeout = \"3s\""),
        "shop.toml:2: ready.timeout: does not apply to a pool; remove it (78)"
    );
    assert_eq!(
        error_of(true, "[env]\nA = \"3\""),
        "shop.toml:2: env.A: does not apply to a pool; remove it (78)"
    );
    assert_eq!(
        error_of(true, "[log]\nformat = \"json\""),
        "shop.toml:2: log.format: does not apply to a pool; remove it (78)"
    );
    assert_eq!(
        error_of(true, "[agent]\nload = \"on\""),
        "shop.toml:2: agent.load: does not apply to a pool; remove it (78)"
    );
    assert_eq!(
        error_of(true, "command = [\"python\"]"),
        "shop.toml:1: command: does not apply to a pool; remove it (78)"
    );
}

#[test]
fn every_bad_value_of_a_pool_is_an_error() {
    for (line, expected) in [
        (
            "function = \"etl\"",
            "MODULE:FUNCTION, such as `etl:convert`",
        ),
        ("workers = 0", "0 is not a whole number from 1 to 4096"),
        ("batch = 0", "0 is not a whole number from 1 to 65536"),
        ("batch = true", "`auto` or a number from 1 to 65536"),
        ("start = \"cold\"", "auto, template, fresh"),
        ("call = \"all\"", "one, args, kwargs"),
        ("imports = [\"a b\"]", "`a b` is not the name of a module"),
        ("task_timeout = \"0s\"", "above zero"),
        ("resume = true", "--journal"),
        ("retry_failed = true", "--resume"),
        (
            "plain = true\ncall = \"args\"",
            "--plain cannot be used with --call",
        ),
        ("retires = 3", "did you mean `pool.retries`?"),
    ] {
        let error = load_text(true, &format!("[pool]\n{line}"), &[], &[]).unwrap_err();
        assert!(error.contains(expected), "{error}");
        assert!(
            error.ends_with("(78)") && error.lines().count() == 1,
            "{error}"
        );
    }
    let error = load_text(true, "", &[("batch", "0")], &[]).unwrap_err();
    assert_eq!(
        error,
        "--batch: `0` is not a whole number from 1 to 65536 (2)"
    );
}

#[test]
fn a_default_that_contradicts_a_setting_is_not_an_error() {
    assert!(load_text(true, "[memory]\ncap = \"90%\"", &[], &[]).is_ok());
    let both = "[memory]\ncap = \"90%\"\nbudget = \"80%\"";
    assert!(load_text(true, both, &[], &[]).is_err());
}

#[test]
fn an_old_name_works_and_is_a_hint() {
    let text = "[recycle]\nat_once = 3\n[memory]\nwire = \"off\"";
    let environ = [
        ("SUPERVISE_STRIKES", "4"),
        ("SUPERVISE_CAPACITY_FIRST", "no"),
    ];
    let loaded = load_text(false, text, &[], &environ).unwrap();
    let (recycle, memory) = (&loaded.spec.recycle, &loaded.spec.memory);
    assert_eq!((recycle.max_unavailable, recycle.surge), (3, false));
    assert_eq!((memory.consecutive_samples, memory.threshold), (4, false));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let hints: Vec<&str> = loaded
        .hints
        .iter()
        .map(|hint| {
            let start = hint.find("shop.toml").unwrap_or(0);
            &hint[start..]
        })
        .collect();
    assert_eq!(
        hints,
        [
            "`SUPERVISE_CAPACITY_FIRST` is the old name of `SUPERVISE_SURGE`",
            "`SUPERVISE_STRIKES` is the old name of `SUPERVISE_CONSECUTIVE_SAMPLES`",
            "shop.toml:2: `recycle.at_once` is the old name of `recycle.max_unavailable`",
            "shop.toml:4: `memory.wire` is the old name of `memory.threshold`",
        ]
        .map(|hint| format!("{hint}; use the new name"))
    );
}

#[test]
fn an_error_in_the_value_of_an_old_name_names_the_old_name() {
    let error = load_text(false, "[recycle]\nat_once = -1", &[], &[]).unwrap_err();
    assert!(
        error.starts_with("shop.toml:2: recycle.at_once: -1 is not"),
        "{error}"
    );
}

#[test]
fn a_key_that_is_set_by_both_names_is_one_error() {
    let text = "[recycle]\nsurge_idle = \"3s\"\nsettle = \"5s\"";
    assert_eq!(
        load_text(false, text, &[], &[]).unwrap_err(),
        "shop.toml:3: recycle.surge_idle: `recycle.settle` is the old name of \
         `recycle.surge_idle`; remove `recycle.settle` (78)"
    );
    let environ = [("SUPERVISE_WIRE", "off"), ("SUPERVISE_THRESHOLD", "auto")];
    let error = load_text(false, "", &[], &environ).unwrap_err();
    assert!(error.contains("remove `SUPERVISE_WIRE`"), "{error}");
    // The file overrides the variable, with the old and the new name.
    let loaded = load_text(false, "[memory]\nthreshold = \"auto\"", &[], &environ[..1]).unwrap();
    assert!(loaded.spec.memory.threshold);
}
