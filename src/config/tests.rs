//! Tests of loading a configuration: errors and defaults.

use std::{fs, time::Duration};

use super::*;
use crate::{
    supervisor::spec::{Kind, Limit, Measure, RestartWhen},
    units::{Bytes, Signal},
};

/// A fake machine: programs in /bin and /x, a file that is not executable, and a user.
pub(super) struct Pretend;

impl Facts for Pretend {
    fn uid(&self) -> u32 {
        1000
    }

    fn here(&self) -> PathBuf {
        "/home".into()
    }

    fn user_exists(&self, name: &str) -> bool {
        name == "web"
    }

    fn unusable(&self, _: &Path) -> Option<String> {
        None
    }

    fn entry(&self, path: &Path) -> Entry {
        match path.to_str().unwrap() {
            "/bin/python" | "/bin/gunicorn" | "/home/./run" | "/x/gunicorn" | "/srv/./run" => {
                Entry::Program
            }
            "/srv" | "/home/sub" | "/" => Entry::Directory,
            "/bin/notes" => Entry::Other,
            _ => Entry::Nothing,
        }
    }
}

/// Loads a file with this text, flags and variables.
pub(super) fn load_all(
    text: Option<&str>,
    flags: &[(&str, &str)],
    environ: &[(&str, &str)],
    command: &[&str],
) -> Result<Loaded, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shop.toml");
    let config = text.map(|text| {
        fs::write(&path, text).unwrap();
        path
    });
    let by_flag = |flag: &str| keys().find(|key| key.flag == flag);
    let command_line = CommandLine {
        is_pool: false,
        config,
        command: command.iter().map(OsString::from).collect(),
        flags: flags
            .iter()
            .map(|(flag, text)| match by_flag(flag) {
                Some(key) => Setting::flag(key.name, flag, *text),
                None => Setting::flag(*flag, "rlimit", *text),
            })
            .collect(),
    };
    let environ = environ
        .iter()
        .map(|(name, value)| (name.into(), value.into()));
    load(&command_line, environ, &Pretend)
}

/// The errors in a file, without its directory, and the exit status.
fn diagnostics(text: &str) -> (String, i32) {
    let command: &[&str] = if text.contains("command") {
        &[]
    } else {
        &["python"]
    };
    let error = load_all(Some(text), &[], &[], command).unwrap_err();
    let text = error.to_string();
    let lines: Vec<&str> = text
        .lines()
        .map(|line| line.find("shop.toml").map_or(line, |at| &line[at..]))
        .collect();
    (lines.join("\n"), error.status())
}

/// Checks the error in each line of a file. All errors are reported at once.
fn check(table: &str, cases: &[(&str, &str)]) {
    let lines: Vec<&str> = cases.iter().map(|(line, _)| *line).collect();
    let (errors, status) = diagnostics(&format!("{table}\n{}", lines.join("\n")));
    assert_eq!(status, 78);
    for (at, (line, expected)) in cases.iter().enumerate() {
        let location = format!("shop.toml:{}: ", at + 2);
        let found = errors.lines().find(|one| one.starts_with(&location));
        let found = found.unwrap_or_else(|| panic!("no error for `{line}` in\n{errors}"));
        let key = line.split(['=', ' ']).next().unwrap();
        assert!(found.contains(key) && found.contains(expected), "{found}");
    }
    assert_eq!(errors.lines().count(), cases.len(), "{errors}");
}

#[test]
fn the_default_time_of_streams_is_at_most_a_third_of_the_grace_period() {
    let times = |text| {
        let stop = spec(text).stop;
        (stop.grace.as_secs(), stop.stream_grace.as_secs())
    };
    assert_eq!(times(""), (30, 10));
    assert_eq!(times("[stop]\ngrace = \"12s\""), (12, 4));
    assert_eq!(times("[stop]\ngrace = \"0s\""), (0, 0));
    let both = "[stop]\ngrace = \"1m\"\nstream_grace = \"45s\"";
    assert_eq!(times(both), (60, 45));
}

fn spec(text: &str) -> Spec {
    load_all(Some(text), &[], &[], &["python"]).unwrap().spec
}

#[test]
fn without_settings_a_service_has_the_defaults() {
    let Loaded { spec, warnings, .. } = load_all(None, &[], &[], &["gunicorn", "app"]).unwrap();
    assert_eq!(spec.name, "app");
    assert_eq!(spec.kind, Kind::Server(&crate::servers::gunicorn::PROFILE));
    assert_eq!(spec.command.program, Path::new("/bin/gunicorn"));
    assert_eq!(spec.command.argv, ["gunicorn", "app"]);
    assert_eq!(
        (spec.memory.ceiling, spec.memory.swap),
        (Limit::Auto, Limit::Off)
    );
    assert_eq!(
        (spec.memory.measure, spec.memory.threshold),
        (Measure::Private, true)
    );
    assert_eq!((spec.recycle.max_age, spec.recycle.jitter), (None, 0.1));
    assert_eq!(spec.restart.when, RestartWhen::OnFailure);
    assert_eq!(spec.restart.delay_min, Duration::from_millis(200));
    assert_eq!(spec.stop.signal, Signal::TERM);
    assert_eq!(
        spec.control.socket,
        Path::new("/tmp/supervise-1000/app.sock")
    );
    assert!(warnings.is_empty() && !spec.dry_run);
}

#[test]
fn every_bad_value_is_an_error_with_its_line() {
    check(
        "[memory]",
        &[
            (
                "ceiling = \"300Q\"",
                "`300Q` is not a size: its unit is unknown",
            ),
            ("cap = \"-5\"", "it is negative"),
            ("budget = 0", "above zero"),
            ("swap = \"1e99\"", "not a size"),
            ("measure = \"rs\"", "did you mean `rss`?"),
            ("consecutive_samples = 0", "0 is not a whole number from 1"),
            (
                "threshold = true",
                "true is a boolean; write one of auto, off",
            ),
        ],
    );
    check(
        "[memory]",
        &[
            ("ceiling = 100", "`100` is 100 bytes, and a limit on memory"),
            ("cap = \"700\"", "did you mean `700M`?"),
            ("budget = \"1K\"", "at least 1M; did you mean `1M`?"),
            ("swap = 50", "did you mean `50M`?"),
        ],
    );
    check(
        "[memory]",
        &[
            ("ceiling = \"101%\"", "at most 100"),
            ("cap = 1.5", "write a size in quotes"),
            ("budget = \"\"", "no number"),
            ("swap = \"auto\"", "does not apply to swap"),
            ("measure = 3", "one of private, rss, pss, cgroup"),
            ("consecutive_samples = \"3\"", "without quotes"),
            ("threshold = 1979-05-27", "it is a date"),
        ],
    );
    check(
        "[recycle]",
        &[
            ("max_unavailable = -1", "whole number"),
            ("min_age = \"30\"", "its unit"),
            ("max_age = 30", "with its unit in quotes"),
            ("jitter = 10", "from 0 to 1"),
            ("surge_idle = true", "duration"),
            ("surge = \"yes\"", "without quotes"),
        ],
    );
    check(
        "[restart]",
        &[
            ("when = \"sometimes\"", "always, on-failure, never"),
            ("delay_min = \"0s\"", "above zero"),
            ("limit = 99999999999999999999", "too large"),
            ("window = []", "is a list"),
        ],
    );
    check(
        "[control]",
        &[
            ("socket = \"\"", "empty"),
            ("metrics = \"localhost\"", "write `127.0.0.1:9100`"),
            ("hosts = [\"http://shop\"]", "without scheme and port"),
            ("history = 0", "from 1 to 100000"),
        ],
    );
}

#[test]
fn every_bad_value_of_the_service_is_an_error_with_its_line() {
    check(
        "# The service",
        &[
            ("name = \"a/b\"", "no `.` at the start"),
            ("user = \"nobody\"", "there is no user `nobody`"),
            ("directory = \"/nowhere\"", "/nowhere is not a directory"),
            ("server = \"unicorn\"", "did you mean `gunicorn`?"),
            ("dry_run = 1", "true or false"),
            ("memory = 3", "write [memory]"),
            ("env = { A = [1] }", "a string in quotes"),
            ("rlimit = { nofiles = 3 }", "did you mean `nofile`?"),
            ("stop = { signal = \"NOPE\" }", "TERM, INT, QUIT"),
            ("ready = { when = \"up\" }", "tcp:HOST:PORT"),
            ("log = { format = \"xml\" }", "text, json"),
        ],
    );
    check(
        "[rlimit]",
        &[
            ("zzz = 3", "known rlimits: as, core"),
            ("core = \"x\"", "`unlimited`"),
            ("nofile = \"3:2\"", "above the hard limit"),
        ],
    );
}

#[test]
fn the_error_of_an_unknown_key_suggests_the_nearest_one() {
    check(
        "[memory]",
        &[
            (
                "celing = 1",
                "`memory.celing`; did you mean `memory.ceiling`?",
            ),
            ("max_age = \"3s\"", "did you mean `recycle.max_age`?"),
            ("zzz = 1", "unknown key `memory.zzz`"),
        ],
    );
    check(
        "",
        &[
            ("ceiling = \"3M\"", "did you mean `memory.ceiling`?"),
            (
                "[memroy]",
                "unknown table `[memroy]`; did you mean `[memory]`?",
            ),
        ],
    );
}

#[test]
fn the_error_of_two_contradicting_keys_is_located_at_the_later_one() {
    for (text, location) in [
        (
            "[memory]\nceiling = \"3G\"\ncap = \"2G\"",
            "3: memory.cap: memory.ceiling 3G",
        ),
        (
            "[memory]\ncap = \"2G\"\nceiling = \"3G\"",
            "3: memory.ceiling: memory.ceiling 3G",
        ),
        (
            "[memory]\ncap = \"2G\"\nbudget = \"1G\"",
            "3: memory.budget: memory.cap 2G",
        ),
        (
            "[memory]\nceiling = \"80%\"\nbudget = \"50%\"",
            "3: memory.budget: memory.ceiling 80%",
        ),
        (
            "[recycle]\nmax_age = \"1s\"",
            "2: recycle.max_age: recycle.max_age is below",
        ),
        (
            "[restart]\ndelay_min = \"1m\"",
            "2: restart.delay_min: restart.delay_max is below",
        ),
        (
            "[stop]\ngrace = \"20s\"\nstream_grace = \"16s\"",
            "3: stop.stream_grace: stop.stream_grace is 16s, and clients are told before \
             stop.grace (20s) is over; set stop.stream_grace to 15s or less",
        ),
    ] {
        let (errors, status) = diagnostics(text);
        let location = format!("shop.toml:{location}");
        assert!(errors.starts_with(&location), "{errors}");
        assert_eq!((errors.lines().count(), status), (1, 78), "{errors}");
    }
    let error = load_all(
        Some("[memory]\ncap = \"1G\""),
        &[("ceiling", "2G")],
        &[],
        &["python"],
    );
    assert_eq!(error.unwrap_err().status(), 2);
}

#[test]
fn limits_in_bytes_and_in_percent_are_compared_when_the_memory_is_known() {
    let spec = spec("[memory]\nceiling = \"50%\"\ncap = \"1G\"\nbudget = \"90%\"");
    assert!(judge(&spec, Bytes::mib(2048)).is_ok());
    let error = judge(&spec, Bytes::mib(4096)).unwrap_err();
    assert_eq!(error.status(), 78);
    let text = error.to_string();
    assert!(
        text.contains("memory.ceiling 50% of 4G (2G) is above memory.cap 1G"),
        "{text}"
    );
    assert!(
        judge(&spec, Bytes::mib(512))
            .unwrap_err()
            .to_string()
            .contains("memory.budget")
    );
}

#[test]
fn a_syntax_error_is_reported_with_its_line() {
    for (text, expected) in [
        (
            "[memory]\nceiling = 300M",
            "shop.toml:2: not TOML: string values must be quoted",
        ),
        ("[memory]\nceiling = 300M", ": ceiling = 300M"),
        ("[memory\nx = 1", "shop.toml:1: not TOML: unclosed table"),
        ("a = 1\na = 2", "shop.toml:2: not TOML: duplicate key"),
    ] {
        let (errors, status) = diagnostics(text);
        assert!(errors.contains(expected), "{errors}");
        assert_eq!(status, 78);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_with_status_78() {
    let directory = tempfile::tempdir().unwrap();
    let binary = directory.path().join("binary.toml");
    fs::write(&binary, b"\xff\xfe").unwrap();
    for (path, why) in [
        (directory.path().join("none.toml"), "No such file"),
        (directory.path().to_owned(), "directory"),
        (binary, "utf-8"),
    ] {
        let command_line = CommandLine {
            config: Some(path),
            ..CommandLine::default()
        };
        let error = load(&command_line, [], &Pretend).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!((error.to_string().lines().count(), error.status()), (1, 78));
    }
}

#[test]
fn a_program_is_found_like_in_a_shell() {
    let found = |command: &str, text: &str| {
        let loaded = load_all(Some(text), &[], &[("PATH", "/none:/bin")], &[command]);
        loaded.map(|loaded| loaded.spec.command.program)
    };
    for (command, text, program) in [
        ("python", "", "/bin/python"),
        ("/x/gunicorn", "", "/x/gunicorn"),
        ("./run", "", "/home/./run"),
        ("./run", "directory = \"/srv\"", "/srv/./run"),
        ("gunicorn", "env = { PATH = \"/x\" }", "/x/gunicorn"),
        ("gunicorn", "env = { PATH = \"../x:/x\" }", "/x/gunicorn"),
    ] {
        assert_eq!(
            found(command, text).unwrap(),
            Path::new(program),
            "{command}"
        );
    }
    for (command, why, status) in [
        ("gunicon", "`gunicon` is not in PATH", 127),
        ("gunicorn app", "as separate words", 127),
        ("/x/none", "does not exist", 127),
        ("", "empty", 127),
        ("notes", "/bin/notes is not executable", 126),
        ("/bin/notes", "/bin/notes is not executable", 126),
        ("/srv", "is a directory", 126),
    ] {
        let error = found(command, "").unwrap_err();
        assert!(error.to_string().starts_with("COMMAND: "), "{error}");
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(error.status(), status);
    }
}

#[test]
fn a_command_in_a_file_is_a_list_of_words() {
    for (text, why, status) in [
        (
            "command = \"gunicorn app\"",
            "such as [\"gunicorn\", \"app\"]",
            78,
        ),
        ("command = []", "write [\"PROGRAM\"", 78),
        ("command = [\"a\", 1]", "each word in quotes", 78),
        ("command = 3", "[\"PROGRAM\"", 78),
        (
            "command = [\"none\"]",
            "shop.toml:1: command: `none` is not in PATH",
            127,
        ),
        ("# no command", "command: no command to run", 78),
    ] {
        let (errors, found) = diagnostics(text);
        assert!(errors.contains(why), "{errors}");
        assert_eq!((errors.lines().count(), found), (1, status), "{errors}");
    }
}

#[test]
fn a_service_is_named_after_its_file_or_its_program() {
    assert_eq!(spec("").name, "shop");
    assert_eq!(spec("name = \"till\"").name, "till");
    assert_eq!(
        load_all(None, &[], &[], &["./run"]).unwrap().spec.name,
        "run"
    );
    let long = format!("/{}.sock", "a".repeat(107));
    let error = load_all(None, &[("socket", &long)], &[], &["python"]).unwrap_err();
    assert!(error.to_string().starts_with("--socket: "), "{error}");
    assert_eq!(error.status(), 2);
}

#[test]
fn this_machine_distinguishes_programs_from_other_files() {
    let machine = Machine {
        uid: 0,
        user_exists: |_| false,
        unusable: |_| None,
    };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(machine.entry(&file), Entry::Other);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(machine.entry(&file), Entry::Program);
    assert_eq!(machine.entry(directory.path()), Entry::Directory);
    assert_eq!(machine.entry(&file.join("x")), Entry::Nothing);
}
