//! Tests of each form of the command line, and of each error with its message.

use clap::CommandFactory;

use super::*;
use crate::config::{self, Mode};

fn parsed(line: &str) -> Result<Command, Usage> {
    parse(line.split(' ').map(OsString::from))
}

fn client(name: Option<&str>, socket: Option<&str>) -> Client {
    Client {
        name: name.map(str::to_owned),
        socket: socket.map(PathBuf::from),
        kept: None,
    }
}

/// The settings as `key=value`, the file and the command.
fn settings_of(line: &str) -> (Vec<String>, Option<PathBuf>, Vec<OsString>) {
    let (Command::Run(command_line) | Command::Check(command_line)) = parsed(line).unwrap() else {
        panic!("{line} starts no service");
    };
    let flags = command_line.flags.iter();
    let flags = flags.map(|setting| format!("{}={}", setting.key, setting.value));
    (flags.collect(), command_line.config, command_line.command)
}

#[test]
fn the_definitions_pass_the_checks_of_clap() {
    Cli::command().debug_assert();
}

#[test]
fn all_words_after_two_dashes_belong_to_the_command() {
    let (flags, config, command) =
        settings_of("supervise --ceiling 300M --dry-run -- a --cap -- b");
    assert_eq!(flags, ["dry_run=`true`", "memory.ceiling=`300M`"]);
    assert_eq!(config, None);
    assert_eq!(command, ["a", "--cap", "--", "b"]);
}

#[test]
fn every_flag_sets_its_key() {
    let with_flags = config::keys().filter(|key| key.applies_to(Mode::Service));
    for key in with_flags.filter(|key| !key.flag.is_empty()) {
        let (value, name) = match (key.value.is_empty(), key.is_map()) {
            (true, _) => ("", key.name.to_owned()),
            (false, true) => (" x=y", format!("{}.x", key.table())),
            (false, false) => (" x", key.name.to_owned()),
        };
        for line in [
            "supervise --F -- a",
            "supervise run --F f",
            "supervise run f --F",
        ] {
            let (flags, ..) = settings_of(&line.replace("F", &format!("{}{value}", key.flag)));
            assert!(flags[0].starts_with(&format!("{name}=")), "{flags:?}");
        }
    }
}

#[test]
fn every_flag_of_a_pool_sets_its_key() {
    let with_flags = config::keys().filter(|key| key.applies_to(Mode::Pool));
    for key in with_flags.filter(|key| !key.flag.is_empty()) {
        let value = if key.value.is_empty() { "" } else { " x" };
        let Command::Map(args) =
            parsed(&format!("supervise map a:b --{}{value}", key.flag)).unwrap()
        else {
            panic!("not `map`");
        };
        let shown = format!("{args:?}");
        assert!(shown.contains(&format!("key: {:?}", key.name)), "{shown}");
    }
}

#[test]
fn an_old_flag_sets_the_key_of_its_new_name() {
    for (old, key) in config::keys().filter_map(|key| Some((key.old?.1, key))) {
        let (flags, ..) = settings_of(&format!("supervise --{old} x -- a"));
        assert_eq!(flags, [format!("{}=`x`", key.name)]);
        let help = parsed("supervise --help").unwrap_err().text;
        assert!(help.contains(&format!("--{} ", key.flag)));
        assert!(!help.contains(&format!("--{old} ")), "{old}");
    }
}

#[test]
fn the_short_help_is_one_screen() {
    for line in ["supervise -h", "supervise run -h", "supervise map -h"] {
        let help = parsed(line).unwrap_err().text;
        assert!(
            help.lines().count() <= 52,
            "{line}: {} lines\n{help}",
            help.lines().count()
        );
        let longest = help.lines().map(str::len).max();
        assert!(longest <= Some(130), "{longest:?}");
    }
}

#[test]
fn max_rss_sets_the_ceiling_and_the_measure() {
    let (flags, ..) = settings_of("supervise --max-rss 1G -- a");
    assert_eq!(flags, ["memory.ceiling=`1G`", "memory.measure=`rss`"]);
}

#[test]
fn a_file_is_named_by_option_or_subcommand_and_a_command_replaces_its_own() {
    for line in [
        "supervise -c f -- a",
        "supervise run f -- a",
        "supervise check f -- a",
    ] {
        let (_, config, command) = settings_of(line);
        assert_eq!(
            (config, command),
            (Some("f".into()), vec!["a".into()]),
            "{line}"
        );
    }
    let (flags, ..) = settings_of("supervise --cap 1G --env A=1 run f --cap 2G --env A=b=c");
    assert_eq!(
        flags,
        [
            "env.A=`1`",
            "memory.cap=`1G`",
            "env.A=`b=c`",
            "memory.cap=`2G`"
        ]
    );
}

#[test]
fn the_service_of_a_client_is_named_before_or_after_the_subcommand() {
    for line in ["supervise --name x status", "supervise status --name x"] {
        let found = parsed(line);
        let Ok(Command::Status {
            client: found,
            json: false,
        }) = found
        else {
            panic!("{found:?}");
        };
        assert_eq!(found, client(Some("x"), None));
    }
    let found = parsed("supervise --socket /a recycle --all --socket /b");
    let Ok(Command::Recycle {
        client: found,
        target: Target::All,
    }) = found
    else {
        panic!("{found:?}");
    };
    assert_eq!(found, client(None, Some("/b")));
}

#[test]
fn the_arguments_of_each_subcommand_are_parsed() {
    for (line, shown) in [
        ("supervise recycle w17", "Worker(WorkerId(17))"),
        ("supervise report", "subject: Last, form: Page"),
        ("supervise report --json", "subject: Last, form: Json"),
        (
            "supervise report w7",
            "subject: Live(WorkerId(7)), form: Page",
        ),
        (
            "supervise report --dot r3",
            "subject: Kept(ReportId(3)), form: Dot",
        ),
        (
            "supervise events --follow --json",
            "follow: true, json: true",
        ),
        (
            "supervise report shop",
            "Some(\"shop\"), socket: None, kept: None }, subject: Last",
        ),
        ("supervise report shop r3", "subject: Kept(ReportId(3))"),
        // A service may have the name of a worker.
        (
            "supervise report w7 w3",
            "Some(\"w7\"), socket: None, kept: None }, subject: Live(WorkerId(3))",
        ),
        ("supervise events shop", "name: Some(\"shop\")"),
        ("supervise suggest shop", "name: Some(\"shop\")"),
        (
            "supervise --leaks-directory /k suggest --json",
            "kept: Some(\"/k\") }, json: true",
        ),
        (
            "supervise --leaks-directory /x report",
            "kept: Some(\"/x\")",
        ),
        ("supervise stop --now", "now: true"),
        ("supervise reload", "Reload"),
        ("supervise doctor", "Doctor"),
        ("supervise man", "Man"),
    ] {
        let found = format!("{:?}", parsed(line).unwrap());
        assert!(found.contains(shown), "{found}");
    }
}

#[test]
fn help_and_version_have_exit_status_0() {
    for (line, shown) in [
        ("supervise --help", "--ceiling"),
        ("supervise run --help", "--ceiling"),
        ("supervise help status", "--json"),
        ("supervise report --help", "dot -Tsvg"),
        ("supervise --version", "supervise 0."),
    ] {
        let usage = parsed(line).unwrap_err();
        assert_eq!(usage.status, 0);
        assert!(usage.text.contains(shown), "{}", usage.text);
    }
}

#[test]
fn the_error_of_a_wrong_command_line_has_a_correction() {
    for (line, shown) in [
        ("supervise", "supervise [OPTIONS] -- COMMAND"),
        ("supervise --ceiling 3M", "supervise [OPTIONS] -- COMMAND"),
        (
            "supervise gunicorn -w 4 a",
            "\n    supervise -- gunicorn -w 4 a\n",
        ),
        (
            "supervise --cap 1G /x/app run",
            "    supervise --cap 1G -- /x/app run\n",
        ),
        (
            "supervise run f gunicorn a",
            "    supervise run f -- gunicorn a\n",
        ),
        (
            "supervise python a.py;",
            "    supervise -- python 'a.py;'\n",
        ),
        ("supervise stauts", "did you mean `supervise status`?"),
        ("supervise status x", "unexpected argument 'x'"),
        ("supervise --celing 1G -- a", "'--ceiling'"),
        ("supervise --workers=4 -- a", "unknown option `--workers`"),
        (
            "supervise run f --listen",
            "a value is required for '--listen <ADDR,...>'",
        ),
        (
            "supervise --ceiling 1G status",
            "`--ceiling` does not apply to `supervise status`",
        ),
        (
            "supervise --name x doctor",
            "`--name` does not apply to `supervise doctor`",
        ),
        (
            "supervise -c f stop",
            "`--config` does not apply to `supervise stop`",
        ),
        ("supervise -c f run g", "second file"),
        ("supervise --name ../x status", "no `.` at the start"),
        (
            "supervise --max-rss 1G --measure pss -- a",
            "cannot be used with",
        ),
        ("supervise --cap 1G --cap 2G -- a", "multiple times"),
        ("supervise --env A -- a", "NAME=VALUE"),
        (
            "supervise --consecutive-samples -- a",
            "--consecutive-samples",
        ),
        (
            "supervise --at-once 1 --max-unavailable 2 -- a",
            "multiple times",
        ),
        ("supervise run", "CONFIG"),
        ("supervise recycle", "WORKER"),
        ("supervise recycle 17", "`w1`, `w2`"),
        ("supervise report --json --dot", "cannot be used with"),
        ("supervise reprot", "did you mean `supervise report`?"),
        ("supervise top", "unknown subcommand `top`"),
    ] {
        let usage = parsed(line).unwrap_err();
        assert_eq!(usage.status, 2, "{line}");
        assert!(usage.text.contains(shown), "{line}: {}", usage.text);
        assert!(!usage.text.contains("as a value"), "{}", usage.text);
    }
}

#[test]
fn the_error_of_a_wrong_report_or_events_command_has_a_correction() {
    for (line, shown) in [
        (
            "supervise report shop x9",
            "`x9` is neither a worker (such as w7) nor a report (such as r3)",
        ),
        (
            "supervise report --name shop r",
            "nor a report (such as r3)",
        ),
        ("supervise report shop w7 r3", "unexpected value 'r3'"),
        ("supervise report --name a b w7", "named twice"),
        ("supervise report ../x", "no `.` at the start"),
        ("supervise events --name a b", "cannot be used with"),
        ("supervise suggest --name a b", "cannot be used with"),
        (
            "supervise --leaks-directory /x status",
            "`--leaks-directory` does not apply to `supervise status`",
        ),
    ] {
        let usage = parsed(line).unwrap_err();
        assert_eq!(usage.status, 2, "{line}");
        assert!(usage.text.contains(shown), "{line}: {}", usage.text);
    }
}

#[test]
fn the_error_of_a_wrong_map_command_has_a_correction() {
    for (line, shown) in [
        (
            "supervise map a:b --batch",
            "a value is required for '--batch <N|auto>'",
        ),
        (
            "supervise map a:b --listen :80",
            "unexpected argument '--listen'",
        ),
        ("supervise map a:b c:d", "unexpected argument 'c:d'"),
        (
            "supervise --ceiling 1G map a:b",
            "does not apply to `supervise map`",
        ),
        (
            "supervise --listen :80 map a:b",
            "`--listen` does not apply to `supervise map`",
        ),
    ] {
        let usage = parsed(line).unwrap_err();
        assert_eq!(usage.status, 2, "{line}");
        assert!(usage.text.contains(shown), "{line}: {}", usage.text);
    }
}
