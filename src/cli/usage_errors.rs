//! Errors in the usage of the command line: a message with a correction.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::config::nearest;

use super::Usage;

/// Options and subcommands that this version does not have.
const LATER: [&str; 4] = ["-n", "--workers", "top", "scale"];

/// The subcommands that run no program.
const CLIENTS: [&str; 14] = [
    "map",
    "config",
    "status",
    "events",
    "report",
    "suggest",
    "recycle",
    "reload",
    "upgrade",
    "stop",
    "doctor",
    "man",
    "completions",
    "help",
];

/// Explains an error that clap found. Some errors get a better message than clap's.
pub(super) fn explain(mut error: clap::Error, args: &[OsString]) -> Usage {
    let is_unknown = matches!(
        error.kind(),
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand
    );
    let unknown = [ContextKind::InvalidSubcommand, ContextKind::InvalidArg]
        .into_iter()
        .find_map(|kind| match error.get(kind) {
            Some(ContextValue::String(word)) if is_unknown => Some(word.clone()),
            _ => None,
        });
    if let Some(word) = unknown {
        if LATER.contains(&word.as_str()) {
            let what = if word.starts_with('-') {
                "option"
            } else {
                "subcommand"
            };
            return wrong_usage(&format!("unknown {what} `{word}`"));
        }
        if let Some(usage) = stray(&word, args) {
            return usage;
        }
        // clap suggests passing an unknown option "as a value", which would make it the program to
        // run.
        error.insert(ContextKind::Suggested, ContextValue::None);
    }
    Usage {
        text: error.to_string(),
        status: error.exit_code(),
    }
}

/// The error of a command line without a program, a file and a subcommand.
pub(super) fn nothing_to_run() -> Usage {
    wrong_usage(
        "no program to run; write one of\n\n    \
         supervise [OPTIONS] -- COMMAND [ARG]...\n    \
         supervise run CONFIG\n\n\
         and see `supervise --help`",
    )
}

/// The error of an option that does not apply to a subcommand.
pub(super) fn not_applicable(flag: &str, word: &str) -> Usage {
    wrong_usage(&format!(
        "`{flag}` does not apply to `supervise {word}`; remove it"
    ))
}

/// An error in the usage of the command line.
pub(super) fn wrong_usage(text: &str) -> Usage {
    Usage {
        text: format!("error: {text}\n"),
        status: 2,
    }
}

/// The error of an unexpected word, which is usually a program without `--` before it. `None` for
/// subcommands that run no program.
fn stray(word: &str, args: &[OsString]) -> Option<Usage> {
    let at = args.iter().skip(1).position(|arg| arg == word)? + 1;
    let (before, command) = args.split_at(at);
    let clients = CLIENTS
        .iter()
        .any(|client| before.iter().any(|arg| arg == client));
    if word.starts_with('-') || clients {
        return None;
    }
    let dashes = OsString::from("--");
    let line: Vec<String> = before
        .iter()
        .skip(1)
        .chain([&dashes])
        .chain(command)
        .map(|arg| quoted(&arg.to_string_lossy()))
        .collect();
    let near = nearest(word, CLIENTS.into_iter().chain(["run", "check"]));
    let meant = near.map_or(String::new(), |near| {
        format!("did you mean `supervise {near}`? ")
    });
    Some(wrong_usage(&format!(
        "`{word}` is not a subcommand; {meant}put the program after `--`:\n\n    supervise {}",
        line.join(" ")
    )))
}

/// A word, quoted for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=./:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
