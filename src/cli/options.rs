//! The flags that wish for something, made from the one table of keys.

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};

use crate::config::{KEYS, Key, Wish};

/// The flags of all keys (see `config::KEYS`), and those that stand for two.
#[derive(Debug)]
pub(super) struct Options(pub(super) Vec<Wish>);

const MAX_RSS: &str = "max-rss";

impl Args for Options {
    fn augment_args(command: clap::Command) -> clap::Command {
        let command = KEYS
            .iter()
            .filter(|key| !key.flag.is_empty())
            .fold(command, |command, key| command.arg(option(key)));
        command.arg(
            Arg::new(MAX_RSS)
                .long(MAX_RSS)
                .value_name("SIZE")
                .help("The same as --ceiling SIZE --measure rss")
                .help_heading(heading("memory"))
                .allow_negative_numbers(true)
                .conflicts_with_all(["ceiling", "measure"]),
        )
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Options {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut wishes = Vec::new();
        for key in KEYS.iter().filter(|key| !key.flag.is_empty()) {
            if key.value.is_empty() {
                if matches.get_flag(key.flag) {
                    wishes.push(Wish::flag(key.name, key.flag, "true"));
                }
            } else if key.is_map() {
                let pairs = matches.get_many::<(String, String)>(key.flag);
                wishes.extend(pairs.unwrap_or_default().map(|(name, text)| {
                    Wish::flag(format!("{}.{name}", key.table()), key.flag, text)
                }));
            } else if key.is_list() {
                if let Some(texts) = matches.get_many::<String>(key.flag) {
                    let texts: Vec<&str> = texts.map(String::as_str).collect();
                    wishes.push(Wish::flag(key.name, key.flag, texts.join(",")));
                }
            } else if let Some(text) = matches.get_one::<String>(key.flag) {
                wishes.push(Wish::flag(key.name, key.flag, text));
            }
        }
        if let Some(text) = matches.get_one::<String>(MAX_RSS) {
            wishes.push(Wish::flag("memory.ceiling", MAX_RSS, text));
            wishes.push(Wish::flag("memory.measure", MAX_RSS, "rss"));
        }
        Ok(Self(wishes))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn option(key: &'static Key) -> Arg {
    let default = match key.default {
        "" | "false" => String::new(),
        default => format!(" [default: {default}]"),
    };
    let arg = Arg::new(key.flag)
        .long(key.flag)
        .help(format!("{}{default}", key.help))
        .help_heading(heading(key.table()));
    if key.value.is_empty() {
        return arg.action(ArgAction::SetTrue);
    }
    let arg = arg.value_name(key.value).allow_negative_numbers(true);
    let arg = if key.name == "recycle.max_tasks" {
        // As gunicorn and others call it.
        arg.visible_alias("max-requests")
    } else {
        arg
    };
    if key.is_map() {
        arg.action(ArgAction::Append).value_parser(pair)
    } else if key.is_list() {
        arg.action(ArgAction::Append)
    } else {
        arg
    }
}

fn heading(table: &str) -> &'static str {
    match table {
        "memory" | "rlimit" => "Memory and other limits",
        "recycle" => "Recycling",
        "agent" | "leaks" => "Asking workers",
        "restart" | "stop" | "ready" => "Starting and stopping",
        "control" | "log" => "Seeing",
        _ => "Service",
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| "write NAME=VALUE".to_owned())
}
