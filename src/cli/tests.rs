//! Each form of the command line, and each mistake with its answer.

use clap::CommandFactory;

use super::*;

fn said(line: &str) -> Result<Command, Usage> {
    parse(line.split(' ').map(OsString::from))
}

fn client(name: Option<&str>, socket: Option<&str>) -> Client {
    Client {
        name: name.map(str::to_owned),
        socket: socket.map(PathBuf::from),
        kept: None,
    }
}

/// The wishes as `key=value`, the file and the command.
fn wishes(line: &str) -> (Vec<String>, Option<PathBuf>, Vec<OsString>) {
    let (Command::Run(wishes) | Command::Check(wishes)) = said(line).unwrap() else {
        panic!("{line} starts nothing");
    };
    let flags = wishes.flags.iter();
    let flags = flags.map(|wish| format!("{}={}", wish.key, wish.value));
    (flags.collect(), wishes.config, wishes.command)
}

#[test]
fn the_definitions_are_sound() {
    Line::command().debug_assert();
}

#[test]
fn a_command_stands_after_two_dashes_with_all_that_is_its_own() {
    let (flags, config, command) = wishes("supervise --ceiling 300M --dry-run -- a --cap -- b");
    assert_eq!(flags, ["dry_run=`true`", "memory.ceiling=`300M`"]);
    assert_eq!(config, None);
    assert_eq!(command, ["a", "--cap", "--", "b"]);
}

#[test]
fn every_flag_wishes_for_its_key() {
    for key in config::KEYS.iter().filter(|key| !key.flag.is_empty()) {
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
            let (flags, ..) = wishes(&line.replace("F", &format!("{}{value}", key.flag)));
            assert!(flags[0].starts_with(&format!("{name}=")), "{flags:?}");
        }
    }
}

#[test]
fn max_rss_is_a_ceiling_of_another_measure() {
    let (flags, ..) = wishes("supervise --max-rss 1G -- a");
    assert_eq!(flags, ["memory.ceiling=`1G`", "memory.measure=`rss`"]);
}

#[test]
fn a_file_may_be_named_in_two_ways_and_its_command_replaced() {
    for line in [
        "supervise -c f -- a",
        "supervise run f -- a",
        "supervise check f -- a",
    ] {
        let (_, config, command) = wishes(line);
        assert_eq!(
            (config, command),
            (Some("f".into()), vec!["a".into()]),
            "{line}"
        );
    }
    let (flags, ..) = wishes("supervise --cap 1G --env A=1 run f --cap 2G --env A=b=c");
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
fn a_client_is_told_its_service_on_either_side() {
    for line in ["supervise --name x status", "supervise status --name x"] {
        let found = said(line);
        let Ok(Command::Status {
            client: found,
            json: false,
        }) = found
        else {
            panic!("{found:?}");
        };
        assert_eq!(found, client(Some("x"), None));
    }
    let found = said("supervise --socket /a recycle --all --socket /b");
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
fn other_words_are_what_they_say() {
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
        // A service may be called like a worker.
        (
            "supervise report w7 w3",
            "Some(\"w7\"), socket: None, kept: None }, subject: Live(WorkerId(3))",
        ),
        ("supervise events shop", "name: Some(\"shop\")"),
        (
            "supervise --leaks-directory /x report",
            "kept: Some(\"/x\")",
        ),
        ("supervise stop --now", "now: true"),
        ("supervise reload", "Reload"),
        ("supervise doctor", "Doctor"),
        ("supervise man", "Man"),
    ] {
        let found = format!("{:?}", said(line).unwrap());
        assert!(found.contains(shown), "{found}");
    }
}

#[test]
fn help_and_version_are_no_mistakes() {
    for (line, shown) in [
        ("supervise --help", "--ceiling"),
        ("supervise run --help", "--ceiling"),
        ("supervise help status", "--json"),
        ("supervise report --help", "dot -Tsvg"),
        ("supervise --version", "supervise 0."),
    ] {
        let usage = said(line).unwrap_err();
        assert_eq!(usage.status, 0);
        assert!(usage.text.contains(shown), "{}", usage.text);
    }
}

#[test]
fn a_mistake_is_answered_by_what_would_be_right() {
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
        ("supervise -n4 -- a", "`-n` is not in this version"),
        ("supervise --workers=4 -- a", "`--workers` is not in"),
        (
            "supervise run f --listen",
            "a value is required for '--listen <ADDR,...>'",
        ),
        (
            "supervise --ceiling 1G status",
            "`--ceiling` means nothing to `supervise status`",
        ),
        (
            "supervise --name x doctor",
            "`--name` means nothing to `supervise doctor`",
        ),
        (
            "supervise -c f stop",
            "`--config` means nothing to `supervise stop`",
        ),
        ("supervise -c f run g", "second file"),
        ("supervise --name ../x status", "no `.` first"),
        (
            "supervise --max-rss 1G --measure pss -- a",
            "cannot be used with",
        ),
        ("supervise --cap 1G --cap 2G -- a", "multiple times"),
        ("supervise --env A -- a", "NAME=VALUE"),
        ("supervise --strikes -- a", "--strikes"),
        ("supervise run", "CONFIG"),
        ("supervise recycle", "WORKER"),
        ("supervise recycle 17", "`w1`, `w2`"),
        ("supervise report --json --dot", "cannot be used with"),
        ("supervise reprot", "did you mean `supervise report`?"),
        ("supervise top", "`top` is not in this version"),
    ] {
        let usage = said(line).unwrap_err();
        assert_eq!(usage.status, 2, "{line}");
        assert!(usage.text.contains(shown), "{line}: {}", usage.text);
        assert!(!usage.text.contains("as a value"), "{}", usage.text);
    }
}

#[test]
fn a_mistake_about_what_is_kept_is_answered_by_what_would_be_right() {
    for (line, shown) in [
        (
            "supervise report shop x9",
            "`x9` is neither a worker, like w7, nor a report, like r3",
        ),
        ("supervise report --name shop r", "nor a report, like r3"),
        ("supervise report shop w7 r3", "unexpected value 'r3'"),
        ("supervise report --name a b w7", "named twice"),
        ("supervise report ../x", "no `.` first"),
        ("supervise events --name a b", "cannot be used with"),
        (
            "supervise --leaks-directory /x status",
            "`--leaks-directory` means nothing to `supervise status`",
        ),
    ] {
        let usage = said(line).unwrap_err();
        assert_eq!(usage.status, 2, "{line}");
        assert!(usage.text.contains(shown), "{line}: {}", usage.text);
    }
}

#[test]
fn a_mistake_about_a_pool_is_answered_by_what_would_be_right() {
    for (line, shown) in [
        ("supervise map a", "MODULE:FUNCTION, like `etl:convert`"),
        ("supervise map a:b --resume", "--journal"),
        ("supervise map a:b --batch 0", "expected `auto` or a number"),
        (
            "supervise --ceiling 1G map a:b",
            "means nothing to `supervise map`",
        ),
        (
            "supervise --listen :80 map a:b",
            "`--listen` means nothing to `supervise map`",
        ),
    ] {
        let usage = said(line).unwrap_err();
        assert_eq!(usage.status, 2, "{line}");
        assert!(usage.text.contains(shown), "{line}: {}", usage.text);
    }
}
