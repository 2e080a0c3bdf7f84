//! The manual page and the completions for shells, from the definitions of the command line.

use std::io;

use clap::{
    Arg, Command, CommandFactory, ValueHint,
    builder::{PossibleValuesParser, StyledStr},
};
use clap_complete::{Shell, generate};
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

use super::Cli;
use crate::config::keys;

/// The parts that are not in the definitions, in the language of man(7): the description, and the
/// sections after the subcommands.
const SECTIONS: &str = include_str!("manual.roff");
const AFTER: &str = ".SH EXAMPLES";

/// Subcommands with the options of a service. The page lists these options only once.
const LIKE_A_SERVICE: [&str; 2] = ["run", "check"];

/// The manual page for all subcommands, in the language of man(7).
pub(super) fn man() -> io::Result<Vec<u8>> {
    let mut all = Cli::command().disable_help_subcommand(true);
    all.build();
    let page = Man::new(all.clone()).title("SUPERVISE");
    let mut out = Vec::new();
    page.render_title(&mut out)?;
    page.render_name_section(&mut out)?;
    page.render_synopsis_section(&mut out)?;
    let (description, rest) = SECTIONS.split_at(SECTIONS.find(AFTER).unwrap_or(0));
    out.extend(description.bytes());
    page.render_options_section(&mut out)?;
    subcommands(&all, &mut out)?;
    out.extend(rest.bytes());
    Ok(out)
}

/// The script that a shell evaluates for completions.
pub(super) fn completions(shell: Shell) -> Vec<u8> {
    let mut command = with_value_hints(Cli::command());
    let mut out = Vec::new();
    generate(shell, &mut command, "supervise", &mut out);
    out
}

/// Writes the description of each subcommand, and the options that only it has.
fn subcommands(all: &Command, out: &mut Vec<u8>) -> io::Result<()> {
    let mut heading = Roff::new();
    heading.control("SH", ["SUBCOMMANDS"]);
    heading.to_writer(out)?;
    for word in all.get_subcommands().filter(|word| !word.is_hide_set()) {
        let mut text = Roff::new();
        text.control("SS", [word.get_name()]);
        let usage = plain_text(&word.clone().render_usage());
        let usage = usage.trim_start_matches("Usage: ");
        let (name, rest) = usage.split_at(usage.find([' ', '[', '<']).unwrap_or(0));
        text.text([bold(name), roman(rest)]);
        for line in word.get_about().map(plain_text).unwrap_or_default().lines() {
            text.control("PP", []);
            text.text([roman(format!("{}.", line.trim_end_matches('.')))]);
        }
        text.to_writer(out)?;
        own_options(word, out)?;
        paragraphs(word.get_after_help(), out)?;
    }
    Ok(())
}

/// Writes the options of a subcommand without a separate heading. Options of a service are omitted.
fn own_options(word: &Command, out: &mut Vec<u8>) -> io::Result<()> {
    let takes_all = LIKE_A_SERVICE.contains(&word.get_name());
    let hidden = |arg: Arg| {
        let is_help = arg.get_id() == "help" || arg.get_id() == "version";
        let is_listed = takes_all && !arg.is_positional();
        arg.hide(is_help || is_listed).help_heading(None::<&str>)
    };
    if takes_all {
        let mut text = Roff::new();
        text.control("PP", []);
        text.text([roman(
            "All options that are listed above are allowed here, too.",
        )]);
        text.to_writer(out)?;
    }
    let mut text = Vec::new();
    Man::new(word.clone().mut_args(hidden)).render_options_section(&mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    // The page already has the preamble that precedes each rendered section.
    let from = text.find(".SH OPTIONS").map_or(text.len(), |at| at + 12);
    out.extend(text.get(from..).unwrap_or_default().bytes());
    Ok(())
}

/// Writes the text that `--help` shows below the options.
fn paragraphs(text: Option<&StyledStr>, out: &mut Vec<u8>) -> io::Result<()> {
    let text = text.map(plain_text).unwrap_or_default();
    let mut roff = Roff::new();
    for paragraph in text.split("\n\n").filter(|part| !part.is_empty()) {
        roff.control("PP", []);
        roff.text([roman(paragraph.replace('\n', " "))]);
    }
    roff.to_writer(out)
}

fn plain_text(text: &StyledStr) -> String {
    text.to_string()
}

/// Adds the possible values of each option, and whether it is a path. Only completions use these,
/// because the errors of `config` are better than clap's.
fn with_value_hints(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let key = keys().find(|key| arg.get_long() == Some(key.flag));
        let name = key.map_or_else(|| value_name(&arg), |key| key.value.to_owned());
        match (name.as_str(), key) {
            ("FILE" | "CONFIG" | "PATH", _) => arg.value_hint(ValueHint::FilePath),
            ("DIR", _) => arg.value_hint(ValueHint::DirPath),
            ("USER", _) => arg.value_hint(ValueHint::Username),
            (_, Some(_)) if name.starts_with("PATH|") => arg.value_hint(ValueHint::FilePath),
            (_, Some(key)) if name.contains('|') => {
                arg.value_parser(PossibleValuesParser::new(key.value.split('|')))
            }
            _ => arg,
        }
    });
    command.mut_subcommands(with_value_hints)
}

fn value_name(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    names.first().map(ToString::to_string).unwrap_or_default()
}

/// Parses the name of a shell.
pub(super) fn shell(text: &str) -> Result<Shell, String> {
    let known = [Shell::Bash, Shell::Zsh, Shell::Fish];
    let found = known.into_iter().find(|shell| shell.to_string() == text);
    found.ok_or_else(|| "write bash, zsh or fish".to_owned())
}
