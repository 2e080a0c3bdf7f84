//! Parses the command line into a [`Command`] or an error.

mod command;
mod console;
mod interpreter;
mod kept;
pub mod map;
mod map_files;
mod options;
mod pages;
mod progress;
mod report;
pub mod run;
mod suggest;
#[cfg(test)]
mod tests;
mod top_level;
pub mod upgrade;
mod usage_errors;

use std::{ffi::OsString, num::NonZeroU32, path::PathBuf};

use clap::{Args, Parser};
use clap_complete::Shell;

use crate::{config::Mode, units::WorkerId};

pub use command::{Client, Command, Form, Subject, Target, Usage};
use options::{PoolOptions, ServiceOptions};
use top_level::TopLevel;

const FORMS: &str = "supervise [OPTIONS] -- COMMAND [ARG]...
       supervise [OPTIONS] run CONFIG [-- COMMAND [ARG]...]
       supervise [OPTIONS] SUBCOMMAND";

const NOTES: &str = "\
Flags override the file, the file overrides SUPERVISE_* variables (SUPERVISE_CEILING for --ceiling).
Durations have a unit: 500ms, 30s, 6h. Sizes are binary: 300M is 300 times 1024 times 1024 bytes.

Exit status: that of COMMAND (128+n for signal n) with --restart never; 0 after a clean stop; 2
wrong usage; 70 internal error; 75 gave up restarting; 78 invalid configuration; 125 setup failed;
126 COMMAND not executable; 127 COMMAND not found.";

const REPORT_NOTES: &str = "\
`supervise report --dot | dot -Tsvg >why.svg` draws a graph. The exit status is 1 if there is no
such report, or if the worker cannot make one. If the service keeps its reports in another
directory, put `--leaks-directory DIR` before the subcommand.";

const SUGGEST_NOTES: &str = "\
The exit status is 1 if too little was seen. If the service keeps its history in another directory,
put `--leaks-directory DIR` before the subcommand.";

/// Keeps Python processes within their memory limits, from outside
#[derive(Debug, Parser)]
#[command(name = "supervise", version, override_usage = FORMS, after_long_help = NOTES)]
#[command(subcommand_value_name = "SUBCOMMAND")]
struct Cli {
    #[command(flatten)]
    options: ServiceOptions,
    /// Read settings from a file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Program to run and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    #[command(subcommand)]
    subcommand: Option<Subcommand>,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// Run the service of a configuration file
    Run(FileArgs),
    /// Run a function over lines of JSON, in a pool of capped workers
    #[command(after_long_help = map::NOTES)]
    Map(Box<map::MapArgs>),
    /// Serve an executor
    #[command(hide = true)]
    Pool(Box<map::PoolArgs>),
    /// Validate a configuration file, and print the effective configuration
    Check(FileArgs),
    /// Print a configuration file with every key and its default
    Config {
        /// For `supervise map`
        #[arg(long)]
        pool: bool,
    },
    /// Show workers, memory, limits and recent exits
    Status {
        #[command(flatten)]
        service: ServiceArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show events, oldest first; also those of a service that has ended
    Events {
        #[command(flatten)]
        service: ServiceArgs,
        /// Name of the service, running or ended; not needed if only one service runs
        #[arg(value_name = "NAME", conflicts_with = "name")]
        of: Option<String>,
        /// Continue with new events
        #[arg(long, short)]
        follow: bool,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Explain a worker's memory, now or in a kept report
    ///
    /// Makes a report of a live worker, or shows a kept report, also of a service that has ended.
    #[command(after_help = REPORT_NOTES)]
    Report {
        #[command(flatten)]
        service: ServiceArgs,
        /// Name of the service, running or ended; then a live worker (w7) or a kept report (r3).
        /// Both may be omitted [default: the last kept report]
        #[arg(value_name = "NAME|WORKER|REPORT", num_args = 0..=2)]
        words: Vec<String>,
        /// Print the report as JSON; if no report is named, all kept reports, newest last
        #[arg(long)]
        json: bool,
        /// Print the references as a graph for Graphviz
        #[arg(long, conflicts_with = "json")]
        dot: bool,
    },
    /// Suggest limits that fit, from the memory that workers have needed
    ///
    /// Reads the history of a service, running or ended.
    #[command(after_help = SUGGEST_NOTES)]
    Suggest {
        #[command(flatten)]
        service: ServiceArgs,
        /// Name of the service, running or ended; not needed if only one service runs
        #[arg(value_name = "NAME", conflicts_with = "name")]
        of: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Replace a worker or all workers gracefully
    Recycle {
        #[command(flatten)]
        service: ServiceArgs,
        /// Name of the worker, as shown by `status`: w17
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        worker: Option<WorkerId>,
        /// Replace all workers, one after the other
        #[arg(long)]
        all: bool,
    },
    /// Replace all workers one after the other, to load new code
    Reload {
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Set the number of workers of a server or a fleet
    Scale {
        #[command(flatten)]
        service: ServiceArgs,
        /// Number of workers
        #[arg(value_name = "N")]
        workers: NonZeroU32,
    },
    /// Switch to the newly installed binary, keeping workers, sockets and pids
    Upgrade {
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Stop the service gracefully
    Stop {
        #[command(flatten)]
        service: ServiceArgs,
        /// Kill at once, without a grace period
        #[arg(long)]
        now: bool,
    },
    /// Report which limits can be enforced on this machine, and how to enable more
    Doctor,
    /// Print the manual page, for `man -l -`
    Man,
    /// Print shell completions, for `. <(supervise completions bash)`
    Completions {
        /// bash, zsh or fish
        #[arg(value_parser = pages::shell)]
        shell: Shell,
    },
}

#[derive(Args, Debug)]
struct FileArgs {
    /// Configuration file
    #[arg(value_name = "CONFIG")]
    config: PathBuf,
    #[command(flatten)]
    options: ServiceOptions,
    /// Program to run and its arguments; replaces the command in the file
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Args, Debug)]
struct ServiceArgs {
    /// Name of the service; not needed if only one service runs
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Control socket of the service
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl ServiceArgs {
    fn with_name(mut self, name: Option<String>) -> Self {
        self.name = name.or(self.name);
        self
    }
}

/// Parses the arguments. The first one is the name of the program.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Usage> {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = Cli::try_parse_from(&args).map_err(|error| usage_errors::explain(error, &args))?;
    let top = TopLevel {
        flags: cli.options.0,
        config: cli.config,
        command: cli.command,
    };
    match cli.subcommand {
        None => top.run().map(Command::Run),
        Some(Subcommand::Run(file)) => top.with_file(file).map(Command::Run),
        Some(Subcommand::Map(args)) => top.client("map", None).map(|_| Command::Map(args)),
        Some(Subcommand::Pool(args)) => top.client("pool", None).map(|_| Command::Pool(args)),
        Some(Subcommand::Check(file)) => top.with_file(file).map(Command::Check),
        Some(Subcommand::Config { pool }) => top
            .client("config", None)
            .map(|_| Command::Config(if pool { Mode::Pool } else { Mode::Service })),
        Some(Subcommand::Status { service, json }) => Ok(Command::Status {
            client: top.client("status", Some(service))?,
            json,
        }),
        Some(Subcommand::Events {
            service,
            of,
            follow,
            json,
        }) => Ok(Command::Events {
            client: top.client("events", Some(service.with_name(of)))?,
            follow,
            json,
        }),
        Some(Subcommand::Report {
            service,
            words,
            json,
            dot,
        }) => report_of(top, service, &words, Form::of(json, dot)),
        Some(Subcommand::Suggest { service, of, json }) => Ok(Command::Suggest {
            client: top.client("suggest", Some(service.with_name(of)))?,
            json,
        }),
        Some(Subcommand::Recycle {
            service, worker, ..
        }) => Ok(Command::Recycle {
            client: top.client("recycle", Some(service))?,
            target: worker.map_or(Target::All, Target::Worker),
        }),
        Some(Subcommand::Reload { service }) => {
            let client = top.client("reload", Some(service))?;
            Ok(Command::Reload { client })
        }
        Some(Subcommand::Scale { service, workers }) => {
            let client = top.client("scale", Some(service))?;
            Ok(Command::Scale { client, workers })
        }
        Some(Subcommand::Upgrade { service }) => {
            let client = top.client("upgrade", Some(service))?;
            Ok(Command::Upgrade { client })
        }
        Some(Subcommand::Stop { service, now }) => {
            let client = top.client("stop", Some(service))?;
            Ok(Command::Stop { client, now })
        }
        Some(Subcommand::Doctor) => top.client("doctor", None).map(|_| Command::Doctor),
        Some(Subcommand::Man) => top.client("man", None).map(|_| Command::Man),
        Some(Subcommand::Completions { shell }) => top
            .client("completions", None)
            .map(|_| Command::Completions(shell)),
    }
}

fn report_of(
    top: TopLevel,
    service: ServiceArgs,
    words: &[String],
    form: Form,
) -> Result<Command, Usage> {
    let words = command::report_words(words, service.name.is_some());
    let (name, subject) = words.map_err(|text| usage_errors::wrong_usage(&text))?;
    Ok(Command::Report {
        client: top.client("report", Some(service.with_name(name)))?,
        subject,
        form,
    })
}
