//! What a command line asks for.

use std::{path::PathBuf, str::FromStr};

use crate::{
    config::Wishes,
    units::{ReportId, WorkerId},
};

/// What is to be done.
#[derive(Debug)]
pub enum Command {
    /// Keep a program running within its memory.
    Run(Box<Wishes>),
    /// Run a function over lines, in a pool.
    Map(Box<super::map::MapArgs>),
    /// Be the pool of an executor.
    Pool(Box<super::map::PoolArgs>),
    /// Judge the wishes, and print what would hold.
    Check(Box<Wishes>),
    /// Print workers, memory, limits and recent ends.
    Status {
        /// Which service.
        client: Client,
        /// As JSON.
        json: bool,
    },
    /// Print what happened, oldest first.
    Events {
        /// Which service.
        client: Client,
        /// Go on with what happens next.
        follow: bool,
        /// As JSON.
        json: bool,
    },
    /// Say why a worker is fat.
    Report {
        /// Which service.
        client: Client,
        /// Whose, or which.
        subject: Subject,
        /// In which form.
        form: Form,
    },
    /// Replace workers gracefully.
    Recycle {
        /// Which service.
        client: Client,
        /// Which of its workers.
        target: Target,
    },
    /// Replace all that runs by what its files say now.
    Reload {
        /// Which service.
        client: Client,
    },
    /// Let the installed binary take over.
    Upgrade {
        /// Which service.
        client: Client,
    },
    /// End the service.
    Stop {
        /// Which service.
        client: Client,
        /// Without waiting for what is in flight.
        now: bool,
    },
    /// Say what this machine lets us enforce.
    Doctor,
    /// Print the manual page.
    Man,
    /// Print what a shell needs to complete our words.
    Completions(clap_complete::Shell),
}

/// How a client finds its service; with neither, the one that runs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Client {
    /// By its name.
    pub name: Option<String>,
    /// By its control socket.
    pub socket: Option<PathBuf>,
    /// The directory with its kept reports and events, if not one of the usual ones.
    pub kept: Option<PathBuf>,
}

/// Whom to recycle.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Target {
    /// One after the other.
    All,
    /// One.
    Worker(WorkerId),
}

/// Which report is meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Subject {
    /// The last one that is kept.
    Last,
    /// This one.
    Kept(ReportId),
    /// A new one, of this worker.
    Live(WorkerId),
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let worker = || text.parse().map(Self::Live);
        let report = text.parse().map(Self::Kept);
        report.or_else(|_| worker()).map_err(|_: String| {
            format!("`{text}` is neither a worker, like w7, nor a report, like r3")
        })
    }
}

/// How a report is shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// For people.
    Page,
    /// As it is kept.
    Json,
    /// Its references, for graphviz.
    Dot,
}

/// What to print instead of doing anything: a mistake, or the help that was asked for.
#[derive(Debug)]
pub struct Usage {
    /// The whole text; for standard output if `status` is 0, else for standard error.
    pub text: String,
    /// The exit status.
    pub status: i32,
}

/// `[NAME] [WORKER|REPORT]`. A single word that reads as a worker or a report is not a name.
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
        [_, _, ..] if is_named => Err("the service is named twice; give one name".to_owned()),
        [name, subject, ..] => Ok((Some(name.clone()), subject.parse()?)),
    }
}
