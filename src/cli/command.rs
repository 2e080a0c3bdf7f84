//! The parsed command line.

use std::{num::NonZeroU32, path::PathBuf, str::FromStr};

use crate::{
    config::{CommandLine, Mode},
    units::{ReportId, WorkerId},
};

/// A command.
#[derive(Debug)]
pub enum Command {
    /// Run a service.
    Run(Box<CommandLine>),
    /// Run a function over lines, in a pool.
    Map(Box<super::map::MapArgs>),
    /// Run the pool of an executor.
    Pool(Box<super::map::PoolArgs>),
    /// Validate the settings, and print the effective configuration.
    Check(Box<CommandLine>),
    /// Print a configuration file with every key.
    Config(Mode),
    /// Print workers, memory, limits and recent exits.
    Status {
        /// The service.
        client: Client,
        /// Print JSON.
        json: bool,
    },
    /// Print events, oldest first.
    Events {
        /// The service.
        client: Client,
        /// Continue with new events.
        follow: bool,
        /// Print JSON.
        json: bool,
    },
    /// Explain a worker's memory.
    Report {
        /// The service.
        client: Client,
        /// The report or the worker.
        subject: Subject,
        /// The format.
        form: Form,
    },
    /// Suggest limits that fit.
    Suggest {
        /// The service.
        client: Client,
        /// Print JSON.
        json: bool,
    },
    /// Replace workers gracefully.
    Recycle {
        /// The service.
        client: Client,
        /// The workers.
        target: Target,
    },
    /// Replace all workers, to load new code.
    Reload {
        /// The service.
        client: Client,
    },
    /// Set the number of workers.
    Scale {
        /// The service.
        client: Client,
        /// The number.
        workers: NonZeroU32,
    },
    /// Switch to the newly installed binary.
    Upgrade {
        /// The service.
        client: Client,
    },
    /// Stop the service.
    Stop {
        /// The service.
        client: Client,
        /// Kill it without a grace period.
        now: bool,
    },
    /// Report what can be enforced on this machine.
    Doctor,
    /// Print the manual page.
    Man,
    /// Print completions for a shell.
    Completions(clap_complete::Shell),
}

/// How a client finds its service. With neither name nor socket, it is the only one that runs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Client {
    /// The name of the service.
    pub name: Option<String>,
    /// The control socket of the service.
    pub socket: Option<PathBuf>,
    /// The directory of kept reports and events, if it is not one of the default directories.
    pub kept: Option<PathBuf>,
}

/// The workers to recycle.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Target {
    /// All workers, one after the other.
    All,
    /// This worker.
    Worker(WorkerId),
}

/// The report to show.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Subject {
    /// The last kept report.
    Last,
    /// This kept report.
    Kept(ReportId),
    /// A new report of this worker.
    Live(WorkerId),
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let worker = || text.parse().map(Self::Live);
        let report = text.parse().map(Self::Kept);
        report.or_else(|_| worker()).map_err(|_: String| {
            format!("`{text}` is neither a worker (such as w7) nor a report (such as r3)")
        })
    }
}

/// The format of a report.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// Text for people.
    Page,
    /// JSON, as the report is stored.
    Json,
    /// The references as a graph for Graphviz.
    Dot,
}

impl Form {
    /// The format that these flags choose.
    pub(super) const fn of(json: bool, dot: bool) -> Self {
        match (json, dot) {
            (true, _) => Self::Json,
            (false, true) => Self::Dot,
            (false, false) => Self::Page,
        }
    }
}

/// A text to print instead of running a command: an error, or help.
#[derive(Debug)]
pub struct Usage {
    /// The text, for standard output if `status` is 0, otherwise for standard error.
    pub text: String,
    /// The exit status.
    pub status: i32,
}

/// Parses `[NAME] [WORKER|REPORT]`. A single word that can be a worker or a report is not a name.
pub(super) fn report_words(
    words: &[String],
    is_named: bool,
) -> Result<(Option<String>, Subject), String> {
    match words {
        [] => Ok((None, Subject::Last)),
        [one] => match one.parse() {
            Ok(subject) => Ok((None, subject)),
            Err(wrong) if is_named => Err(wrong),
            Err(_) => Ok((Some(one.clone()), Subject::Last)),
        },
        [_, _, ..] if is_named => Err("the service is named twice; use one name".to_owned()),
        [name, subject, ..] => Ok((Some(name.clone()), subject.parse()?)),
    }
}
