//! Loading as a whole: layers, complaints, defaults, and that the documents say the same.

use std::{fs, time::Duration};

use super::*;
use crate::{
    supervisor::spec::{Kind, Limit, Measure, RestartWhen},
    units::{Bytes, Signal, Size},
};

/// A pretend machine: programs in /bin and /x, one file that is none, one user.
struct Pretend;

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

/// Loads a file's text below flags and above variables.
fn load_all(
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
    let by_flag = |flag: &str| KEYS.iter().find(|key| key.flag == flag);
    let wishes = Wishes {
        config,
        command: command.iter().map(OsString::from).collect(),
        flags: flags
            .iter()
            .map(|(flag, text)| match by_flag(flag) {
                Some(key) => Wish::flag(key.name, flag, *text),
                None => Wish::flag(*flag, "rlimit", *text),
            })
            .collect(),
    };
    let environ = environ
        .iter()
        .map(|(name, value)| (name.into(), value.into()));
    load(&wishes, environ, &Pretend)
}

/// What a file is complained about, its directory cut off, and the exit status.
fn complaints(text: &str) -> (String, i32) {
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

/// Each line of a file, and what is said of it; all of it is in one file and said at once.
fn check(table: &str, cases: &[(&str, &str)]) {
    let lines: Vec<&str> = cases.iter().map(|(line, _)| *line).collect();
    let (said, status) = complaints(&format!("{table}\n{}", lines.join("\n")));
    assert_eq!(status, 78);
    for (at, (line, expected)) in cases.iter().enumerate() {
        let place = format!("shop.toml:{}: ", at + 2);
        let found = said.lines().find(|one| one.starts_with(&place));
        let found = found.unwrap_or_else(|| panic!("nothing is said of `{line}` in\n{said}"));
        let key = line.split(['=', ' ']).next().unwrap();
        assert!(found.contains(key) && found.contains(expected), "{found}");
    }
    assert_eq!(said.lines().count(), cases.len(), "{said}");
}

fn spec(text: &str) -> Spec {
    load_all(Some(text), &[], &[], &["python"]).unwrap().spec
}

#[test]
fn without_a_wish_the_defaults_hold() {
    let Loaded { spec, warnings } = load_all(None, &[], &[], &["gunicorn", "app"]).unwrap();
    assert_eq!(spec.name, "app");
    assert_eq!(spec.kind, Kind::Server(crate::servers::gunicorn::HABITS));
    assert_eq!(spec.command.program, Path::new("/bin/gunicorn"));
    assert_eq!(spec.command.argv, ["gunicorn", "app"]);
    assert_eq!(
        (spec.memory.ceiling, spec.memory.swap),
        (Limit::Auto, Limit::Off)
    );
    assert_eq!(
        (spec.memory.measure, spec.memory.wire),
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
fn flags_override_the_file_which_overrides_variables() {
    let file = "[memory]\nceiling = \"2M\"\ncap = \"20M\"";
    let flags = [("cap", "30M")];
    let environ = [
        ("SUPERVISE_CEILING", "1M"),
        ("SUPERVISE_BUDGET", "90M"),
        ("OTHER", "x"),
    ];
    let spec = load_all(Some(file), &flags, &environ, &["python"])
        .unwrap()
        .spec;
    let at = |mib| Limit::At(Size::Bytes(Bytes::mib(mib)));
    assert_eq!(spec.memory.ceiling, at(2));
    assert_eq!(spec.memory.cap, at(30));
    assert_eq!(spec.memory.budget, at(90));
}

#[test]
fn variables_and_flags_are_complained_about_by_their_names() {
    let environ = [("SUPERVISE_CAP", "x"), ("SUPERVISE_DRY_RUN", "maybe")];
    let said = |flags: &[_], environ: &[_]| {
        let error = load_all(None, flags, environ, &["python"]).unwrap_err();
        (error.to_string(), error.status())
    };
    let (text, status) = said(&[], &environ);
    assert!(
        text.starts_with("SUPERVISE_CAP: `x` is not a size"),
        "{text}"
    );
    assert!(
        text.contains("\nSUPERVISE_DRY_RUN: `maybe` is neither"),
        "{text}"
    );
    assert_eq!(status, 78);
    let flags = [
        ("ceiling", "300Q"),
        ("at-once", "0"),
        ("rlimit.nofiles", "3"),
    ];
    let (text, status) = said(&flags, &[]);
    assert!(text.contains("--ceiling: `300Q` is not a size"), "{text}");
    assert!(text.contains("--at-once: `0` is not"), "{text}");
    assert_eq!((text.lines().count(), status), (3, 2));
    assert_eq!(said(&flags, &environ).1, 78);
}

#[test]
fn an_unknown_variable_is_only_warned_of() {
    let loaded = load_all(None, &[], &[("SUPERVISE_CELING", "1")], &["python"]).unwrap();
    assert_eq!(
        loaded.warnings,
        ["unknown variable `SUPERVISE_CELING`; did you mean `SUPERVISE_CEILING`?"]
    );
}

#[test]
fn every_bad_value_is_complained_about_in_its_line() {
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
            ("strikes = 0", "0 is not a whole number from 1"),
            ("wire = true", "true is a boolean; write one of auto, off"),
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
            ("swap = \"auto\"", "no amount of swap"),
            ("measure = 3", "one of private, rss, pss, cgroup"),
            ("strikes = \"3\"", "without quotes"),
            ("wire = 1979-05-27", "it is a date"),
        ],
    );
    check(
        "[recycle]",
        &[
            ("at_once = -1", "whole number"),
            ("min_age = \"30\"", "its unit"),
            ("max_age = 30", "with its unit in quotes"),
            ("jitter = 10", "from 0 to 1"),
            ("settle = true", "duration"),
            ("capacity_first = \"yes\"", "without quotes"),
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
fn every_bad_value_of_the_service_is_complained_about_in_its_line() {
    check(
        "# The service",
        &[
            ("name = \"a/b\"", "no `.` first"),
            ("user = \"nobody\"", "there is no user `nobody`"),
            ("directory = \"/nowhere\"", "/nowhere is not a directory"),
            ("server = \"unicorn\"", "did you mean `gunicorn`?"),
            ("dry_run = 1", "true or false"),
            ("memory = 3", "write [memory]"),
            ("env = { A = [1] }", "a text in quotes"),
            ("rlimit = { nofiles = 3 }", "did you mean `nofile`?"),
            ("stop = { signal = \"NOPE\" }", "TERM, INT, QUIT"),
            ("ready = { when = \"up\" }", "tcp:HOST:PORT"),
            ("log = { format = \"xml\" }", "text, json"),
        ],
    );
    check(
        "[rlimit]",
        &[
            ("zzz = 3", "there are as, core"),
            ("core = \"x\"", "`unlimited`"),
            ("nofile = \"3:2\"", "above the hard one"),
        ],
    );
}

#[test]
fn an_unknown_key_is_answered_by_the_nearest_one() {
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
fn two_keys_that_do_not_fit_are_complained_of_where_it_was_said_last() {
    for (text, place) in [
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
    ] {
        let (said, status) = complaints(text);
        let place = format!("shop.toml:{place}");
        assert!(said.starts_with(&place), "{said}");
        assert_eq!((said.lines().count(), status), (1, 78), "{said}");
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
fn bytes_and_percent_are_judged_where_the_memory_is_known() {
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
fn what_is_not_toml_is_shown_by_its_line() {
    for (text, expected) in [
        (
            "[memory]\nceiling = 300M",
            "shop.toml:2: not TOML: string values must be quoted",
        ),
        ("[memory]\nceiling = 300M", ": ceiling = 300M"),
        ("[memory\nx = 1", "shop.toml:1: not TOML: unclosed table"),
        ("a = 1\na = 2", "shop.toml:2: not TOML: duplicate key"),
    ] {
        let (said, status) = complaints(text);
        assert!(said.contains(expected), "{said}");
        assert_eq!(status, 78);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_bad_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let binary = directory.path().join("binary.toml");
    fs::write(&binary, b"\xff\xfe").unwrap();
    for (path, why) in [
        (directory.path().join("none.toml"), "No such file"),
        (directory.path().to_owned(), "directory"),
        (binary, "utf-8"),
    ] {
        let wishes = Wishes {
            config: Some(path),
            ..Wishes::default()
        };
        let error = load(&wishes, [], &Pretend).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!((error.to_string().lines().count(), error.status()), (1, 78));
    }
}

#[test]
fn a_program_is_found_as_the_shell_finds_it() {
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
        ("gunicorn app", "write the words apart", 127),
        ("/x/none", "is not there", 127),
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
        ("# no command", "command: nothing says what to run", 78),
    ] {
        let (said, found) = complaints(text);
        assert!(said.contains(why), "{said}");
        assert_eq!((said.lines().count(), found), (1, status), "{said}");
    }
}

#[test]
fn a_service_is_called_after_its_file_else_after_its_program() {
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
fn this_machine_tells_a_program_from_what_is_none() {
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
