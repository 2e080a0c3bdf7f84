//! The command line: arguments in, a [`Command`] or one clear message out. It carries nothing out.

mod command;
mod console;
mod interpreter;
mod kept;
pub mod map;
mod map_files;
mod mistakes;
mod options;
mod pages;
mod progress;
mod report;
pub mod run;
#[cfg(test)]
mod tests;
pub mod upgrade;

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    config::{self, Wish, Wishes},
    units::WorkerId,
};

pub use command::{Client, Command, Form, Subject, Target, Usage};
use options::Options;

const FORMS: &str = "supervise [OPTIONS] -- COMMAND [ARG]...
       supervise [OPTIONS] run CONFIG [-- COMMAND [ARG]...]
       supervise [OPTIONS] SUBCOMMAND";

const NOTES: &str = "\
Flags override the file, the file overrides SUPERVISE_* variables (SUPERVISE_CEILING for --ceiling).
Durations have a unit: 500ms, 30s, 6h. Sizes are binary: 300M is 300 times 1024 times 1024 bytes.

Exit status: COMMAND's own (128+n for signal n) with --restart never; 0 after a clean stop; 2 wrong
use; 70 a fault of ours; 75 gave up restarting; 78 bad configuration; 125 could not set up; 126
COMMAND not executable; 127 COMMAND not found.";

const REPORT_NOTES: &str = "\
A graph is drawn by `supervise report --dot | dot -Tsvg >why.svg`. The exit status is 1 when there
is no such report, or the worker cannot be asked. Where a service keeps its reports elsewhere, put
`--leaks-directory DIR` before the subcommand.";

/// Keeps Python processes within their memory, from outside
#[derive(Debug, Parser)]
#[command(name = "supervise", version, override_usage = FORMS, after_help = NOTES)]
#[command(subcommand_value_name = "SUBCOMMAND")]
struct Line {
    #[command(flatten)]
    options: Options,
    /// Read the wishes of a file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The program to keep and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    #[command(subcommand)]
    word: Option<Word>,
}

#[derive(Debug, Subcommand)]
enum Word {
    /// Keep the program of a file running within its memory
    Run(FromFile),
    /// Run FUNCTION over JSON lines, in capped workers
    #[command(after_help = map::NOTES)]
    Map(Box<map::MapArgs>),
    /// Serve an executor
    #[command(hide = true)]
    Pool(Box<map::PoolArgs>),
    /// Validate a file, and print the effective configuration
    Check(FromFile),
    /// Show workers, memory, limits and recent ends
    Status {
        #[command(flatten)]
        at: At,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show events, oldest first; for a service that has ended, those that were kept
    Events {
        #[command(flatten)]
        at: At,
        /// Name of the service, running or ended; not needed while only one runs
        #[arg(value_name = "NAME", conflicts_with = "name")]
        of: Option<String>,
        /// Go on with what happens next
        #[arg(long, short)]
        follow: bool,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Explain a worker's memory: ask it now, or show a kept report, also of a service that has
    /// ended
    #[command(after_help = REPORT_NOTES)]
    Report {
        #[command(flatten)]
        at: At,
        /// Name of the service, running or ended; then a live worker (w7) to ask now, or a kept
        /// report (r3). Each may be left out [default: the last report kept]
        #[arg(value_name = "NAME|WORKER|REPORT", num_args = 0..=2)]
        words: Vec<String>,
        /// Print JSON: all that are kept, newest last, or the one that is meant
        #[arg(long)]
        json: bool,
        /// Print who holds what as a graph, for graphviz
        #[arg(long, conflicts_with = "json")]
        dot: bool,
    },
    /// Replace a worker, or all of them, gracefully
    Recycle {
        #[command(flatten)]
        at: At,
        /// Its name, as `status` shows it: w17
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        worker: Option<WorkerId>,
        /// One after the other
        #[arg(long)]
        all: bool,
    },
    /// Replace all workers one after the other, for new code
    Reload {
        #[command(flatten)]
        at: At,
    },
    /// Go on as the binary that is installed now; workers, sockets and pids stay
    Upgrade {
        #[command(flatten)]
        at: At,
    },
    /// Stop the service gracefully
    Stop {
        #[command(flatten)]
        at: At,
        /// Kill at once
        #[arg(long)]
        now: bool,
    },
    /// Say what this machine lets us enforce, and how to get more
    Doctor,
    /// Print the manual page: supervise man | man -l -
    Man,
    /// Print completions for a shell: . <(supervise completions bash)
    Completions {
        /// bash, zsh or fish
        #[arg(value_parser = pages::shell)]
        shell: Shell,
    },
}

#[derive(Args, Debug)]
struct FromFile {
    /// The file
    #[arg(value_name = "CONFIG")]
    config: PathBuf,
    #[command(flatten)]
    options: Options,
    /// In place of the file's command
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Args, Debug)]
struct At {
    /// Name of the service; not needed while only one runs
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Its control socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl At {
    fn named(mut self, name: Option<String>) -> Self {
        self.name = name.or(self.name);
        self
    }
}

/// Reads the words, the program's own name first.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Usage> {
    let args: Vec<OsString> = args.into_iter().collect();
    let line = Line::try_parse_from(&args).map_err(|error| mistakes::explain(error, &args))?;
    let given = Given {
        flags: line.options.0,
        config: line.config,
        command: line.command,
    };
    match line.word {
        None => given.run().map(Command::Run),
        Some(Word::Run(file)) => given.with(file).map(Command::Run),
        Some(Word::Map(args)) => given.client("map", None).map(|_| Command::Map(args)),
        Some(Word::Pool(args)) => given.client("pool", None).map(|_| Command::Pool(args)),
        Some(Word::Check(file)) => given.with(file).map(Command::Check),
        Some(Word::Status { at, json }) => {
            let client = given.client("status", Some(at))?;
            Ok(Command::Status { client, json })
        }
        Some(Word::Events {
            at,
            of,
            follow,
            json,
        }) => Ok(Command::Events {
            client: given.client("events", Some(at.named(of)))?,
            follow,
            json,
        }),
        Some(Word::Report {
            at,
            words,
            json,
            dot,
        }) => {
            let words = command::report_words(&words, at.name.is_some());
            let (name, subject) = words.map_err(|text| mistakes::wrong(&text))?;
            Ok(Command::Report {
                client: given.client("report", Some(at.named(name)))?,
                subject,
                form: match (json, dot) {
                    (true, _) => Form::Json,
                    (false, true) => Form::Dot,
                    (false, false) => Form::Page,
                },
            })
        }
        Some(Word::Recycle { at, worker, .. }) => Ok(Command::Recycle {
            client: given.client("recycle", Some(at))?,
            target: worker.map_or(Target::All, Target::Worker),
        }),
        Some(Word::Reload { at }) => {
            let client = given.client("reload", Some(at))?;
            Ok(Command::Reload { client })
        }
        Some(Word::Upgrade { at }) => {
            let client = given.client("upgrade", Some(at))?;
            Ok(Command::Upgrade { client })
        }
        Some(Word::Stop { at, now }) => {
            let client = given.client("stop", Some(at))?;
            Ok(Command::Stop { client, now })
        }
        Some(Word::Doctor) => given.client("doctor", None).map(|_| Command::Doctor),
        Some(Word::Man) => given.client("man", None).map(|_| Command::Man),
        Some(Word::Completions { shell }) => given
            .client("completions", None)
            .map(|_| Command::Completions(shell)),
    }
}

/// What stood before the subcommand.
struct Given {
    flags: Vec<Wish>,
    config: Option<PathBuf>,
    command: Vec<OsString>,
}

impl Given {
    fn run(self) -> Result<Box<Wishes>, Usage> {
        if self.config.is_none() && self.command.is_empty() {
            return Err(mistakes::nothing_to_run());
        }
        Ok(Box::new(Wishes {
            config: self.config,
            command: self.command,
            flags: self.flags,
        }))
    }

    fn with(mut self, file: FromFile) -> Result<Box<Wishes>, Usage> {
        if self.config.is_some() {
            return Err(mistakes::wrong("`--config` names a second file; give one"));
        }
        self.flags.extend(file.options.0);
        Ok(Box::new(Wishes {
            config: Some(file.config),
            command: file.command,
            flags: self.flags,
        }))
    }

    /// `--name` and `--socket` may stand on either side of the subcommand; nothing else means
    /// anything to a client.
    fn client(self, word: &str, at: Option<At>) -> Result<Client, Usage> {
        let is_client = at.is_some();
        let mut client = Client::default();
        let (mut name, mut socket) = at.map_or((None, None), |at| (at.name, at.socket));
        for wish in self.flags {
            let (config::Origin::Flag(flag), config::Value::Words(text)) =
                (&wish.origin, &wish.value)
            else {
                continue;
            };
            match wish.key.as_str() {
                "name" if is_client => name = name.or_else(|| Some(text.clone())),
                "control.socket" if is_client => socket = socket.or_else(|| Some(text.into())),
                "leaks.directory" if matches!(word, "events" | "report") => {
                    client.kept = Some(text.into());
                }
                _ => return Err(mistakes::idle(flag, word)),
            }
        }
        if self.config.is_some() {
            return Err(mistakes::idle("--config", word));
        }
        if let Some(Err(text)) = name.as_deref().map(config::check_name) {
            return Err(mistakes::wrong(&format!("--name: {text}")));
        }
        client.name = name;
        client.socket = socket;
        Ok(client)
    }
}
