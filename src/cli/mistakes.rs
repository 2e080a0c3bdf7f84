//! What to say to arguments that make no sense: one message, with what would be right.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::config::nearest;

use super::Usage;

/// What older notes and other tools may have taught, and this version does not have.
const LATER: [&str; 4] = ["-n", "--workers", "top", "scale"];

/// The subcommands that run no program.
const CLIENTS: [&str; 8] = [
    "status", "events", "report", "recycle", "reload", "stop", "doctor", "help",
];

/// Says what clap found, and says it better where we know more.
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
            return wrong(&format!("`{word}` is not in this version"));
        }
        if let Some(usage) = stray(&word, args) {
            return usage;
        }
        // The tip to pass an unknown option "as a value" would make it the program to run.
        error.insert(ContextKind::Suggested, ContextValue::None);
    }
    Usage {
        text: error.to_string(),
        status: error.exit_code(),
    }
}

/// `supervise` alone, or with options only.
pub(super) fn nothing_to_run() -> Usage {
    wrong(
        "there is nothing to run; write one of\n\n    \
         supervise [OPTIONS] -- COMMAND [ARG]...\n    \
         supervise run CONFIG\n\n\
         and see `supervise --help`",
    )
}

/// An option that a subcommand would not look at.
pub(super) fn idle(flag: &str, word: &str) -> Usage {
    wrong(&format!(
        "`{flag}` means nothing to `supervise {word}`; leave it out"
    ))
}

/// A mistake in the use of the command line.
pub(super) fn wrong(text: &str) -> Usage {
    Usage {
        text: format!("error: {text}\n"),
        status: 2,
    }
}

/// A word where none belongs: mostly a program whose `--` was forgotten. Clients run none.
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
    Some(wrong(&format!(
        "`{word}` is no subcommand; {meant}a program to run stands after `--`:\n\n    supervise {}",
        line.join(" ")
    )))
}

/// As a shell wants it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=./:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
