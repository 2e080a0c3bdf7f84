//! The options, generated from the table of keys.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};

use crate::config::{Key, Mode, Setting, keys};

/// The options of a service: one for each key (see `config::keys`), and options that set two keys.
#[derive(Debug)]
pub(super) struct ServiceOptions(pub(super) Vec<Setting>);

/// The options of a pool.
#[derive(Debug)]
pub(super) struct PoolOptions(pub(super) Vec<Setting>);

const MAX_RSS: &str = "max-rss";

impl Args for ServiceOptions {
    fn augment_args(command: Command) -> Command {
        let command = add_options(command, Mode::Service);
        command.arg(
            Arg::new(MAX_RSS)
                .long(MAX_RSS)
                .value_name("SIZE")
                .help("The same as --ceiling SIZE --measure rss")
                .help_heading(heading("memory"))
                .hide_short_help(true)
                .allow_negative_numbers(true)
                .conflicts_with_all(["ceiling", "measure"]),
        )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ServiceOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut settings = settings_of(matches, Mode::Service);
        if let Some(text) = matches.get_one::<String>(MAX_RSS) {
            settings.push(Setting::flag("memory.ceiling", MAX_RSS, text));
            settings.push(Setting::flag("memory.measure", MAX_RSS, "rss"));
        }
        Ok(Self(settings))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for PoolOptions {
    fn augment_args(command: Command) -> Command {
        add_options(command, Mode::Pool)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for PoolOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        Ok(Self(settings_of(matches, Mode::Pool)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The keys of a mode that have a flag.
fn with_flags(mode: Mode) -> impl Iterator<Item = &'static Key> {
    keys().filter(move |key| key.applies_to(mode) && !key.flag.is_empty())
}

fn add_options(command: Command, mode: Mode) -> Command {
    with_flags(mode).fold(command, |command, key| command.arg(option(key, mode)))
}

fn settings_of(matches: &ArgMatches, mode: Mode) -> Vec<Setting> {
    let mut settings = Vec::new();
    for key in with_flags(mode) {
        if key.value.is_empty() {
            if matches.get_flag(key.flag) {
                settings.push(Setting::flag(key.name, key.flag, "true"));
            }
        } else if key.is_map() {
            let pairs = matches.get_many::<(String, String)>(key.flag);
            settings.extend(pairs.unwrap_or_default().map(|(name, text)| {
                Setting::flag(format!("{}.{name}", key.table()), key.flag, text)
            }));
        } else if key.is_list() {
            if let Some(texts) = matches.get_many::<String>(key.flag) {
                let texts: Vec<&str> = texts.map(String::as_str).collect();
                settings.push(Setting::flag(key.name, key.flag, texts.join(",")));
            }
        } else if let Some(text) = matches.get_one::<String>(key.flag) {
            settings.push(Setting::flag(key.name, key.flag, text));
        }
    }
    settings
}

fn option(key: &'static Key, mode: Mode) -> Arg {
    let default = match key.default(mode) {
        "" | "false" => String::new(),
        default => format!(" [default: {default}]"),
    };
    let mut arg = Arg::new(key.flag)
        .long(key.flag)
        .help(format!("{}{default}", key.help))
        .help_heading(heading(key.table()))
        .hide_short_help(!key.is_basic);
    if let Some(letter) = key.short {
        arg = arg.short(letter);
    }
    if let Some((_, flag)) = key.old {
        arg = arg.alias(flag);
    }
    if key.value.is_empty() {
        return arg.action(ArgAction::SetTrue);
    }
    arg = arg.value_name(key.value).allow_negative_numbers(true);
    if key.name == "recycle.max_tasks" {
        // gunicorn and others use this name.
        arg = arg.visible_alias("max-requests");
    }
    if key.is_map() {
        arg.action(ArgAction::Append).value_parser(key_value)
    } else if key.is_list() {
        arg.action(ArgAction::Append)
    } else {
        arg
    }
}

fn heading(table: &str) -> &'static str {
    match table {
        "memory" | "rlimit" | "cgroup" => "Memory and other limits",
        "recycle" => "Recycling",
        "agent" | "leaks" => "Agent and reports",
        "restart" | "stop" | "ready" => "Starting and stopping",
        "control" | "log" => "Observability",
        "pool" => "Pool",
        _ => "Service",
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| "write NAME=VALUE".to_owned())
}
