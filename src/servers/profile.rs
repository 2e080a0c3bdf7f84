//! The profile of a server: what `supervise` needs to know about it. Each server has one file with
//! its profile.

use std::fmt;

use crate::units::Signal;

/// A server whose workers are its child processes.
#[derive(Clone, Copy)]
pub struct Profile {
    /// The value of `--server`, which is also the name of the server's script and module.
    pub name: &'static str,
    /// Other names of its script.
    pub scripts: &'static [&'static str],
    /// Words of its command line: without any of them it has no workers. Empty: it needs none.
    pub words: &'static [&'static str],
    /// The start of the process title of the main process, if it sets one.
    pub title: Option<&'static str>,
    /// By what the server is recognised.
    pub found: Found,
    /// Which child processes are workers, and when a worker serves.
    pub workers: Workers,
    /// How a worker is replaced.
    pub replace: Replacement,
    /// The signals of the main process, in addition to those of `replace`.
    pub signals: Signals,
    /// If a worker exits with one of these statuses while it boots, the whole server stops.
    pub boot_failures: &'static [i32],
    /// The agent prevents that stop.
    pub is_guarded: bool,
    /// The server stops all its workers when one exits, unless the agent prevents that. Then its
    /// main process handles this signal.
    pub guard: Option<Signal>,
    /// What its forks are that are not workers.
    pub helpers: Option<Helpers>,
}

/// The names of a server's forks that are not workers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Helpers {
    /// Of the forks themselves.
    pub name: &'static str,
    /// Of the processes below them.
    pub children: &'static str,
}

/// By what a server is recognised.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// Its command line shows that its children are workers.
    ByCommand,
    /// Programs of any name run it: its workers and the signals that it handles show what it is.
    ByWorkers,
    /// By its command line, when it has workers: without any, it is a single process.
    ByBoth,
}

/// Which child processes of a server are its workers, and when a worker serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Workers {
    /// Forks that have a file open whose name starts with `heartbeat`. The server also has that
    /// file open, but other workers do not. A worker serves when it has changed the times of the
    /// file.
    Forks {
        /// The start of the file's name.
        heartbeat: &'static str,
    },
    /// Child processes that execute a program with `word` in its command line. A worker serves when
    /// it waits for connections (epoll) on a socket that the server also has open.
    Spawned {
        /// The word.
        word: &'static str,
    },
    /// Forks, and processes that multiprocessing has started with its method `spawn`.
    Children(Serves),
    /// All child processes. A worker serves when it or a child of it waits for connections on a
    /// socket that the server also has open, or, without such sockets, when it has run for a while.
    Copies,
}

/// When a child process of a server serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Serves {
    /// When it waits for connections (epoll) on a socket that the server also has open. A child
    /// that does not handle the signal for workers is a helper.
    Connections,
    /// When it has waited for something for a second, or has run for a while.
    Tasks,
}

/// How a worker of a server is replaced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Replacement {
    /// The server starts one more worker. When that one serves, the old worker is stopped. When no
    /// other worker has to be replaced, the server retires one worker.
    Surge {
        /// The signal to the server to start one more worker.
        raise: Signal,
        /// The signal to the server to retire one worker.
        lower: Signal,
        /// The worker that the server then retires.
        retires: Retires,
        /// The signal to a worker to finish its requests and exit. Its server then starts another
        /// one.
        retire: Signal,
    },
    /// The worker is stopped. When it has exited, its server starts another one.
    Signal {
        /// The signal to the worker.
        retire: Signal,
    },
    /// A worker is not replaced, because its server stops all its workers when one exits.
    Never {
        /// What to do instead, as a hint.
        hint: &'static str,
    },
}

/// The worker that a server retires when it reduces the number of workers by one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Retires {
    /// The worker that was started first.
    Oldest,
    /// The worker that was started last.
    Newest,
}

/// Signals of the main process of a server.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Signals {
    /// Replaces all workers, and sets their number to the configured one.
    pub reload: Option<Signal>,
    /// Starts a second main process.
    pub second_master: Option<Signal>,
    /// Stops the server without waiting for running requests.
    pub quit: Option<Signal>,
    /// Stops the server gracefully, if TERM does not.
    pub stop: Option<Signal>,
}

impl Signals {
    /// It handles none of them.
    pub const NONE: Self = Self {
        reload: None,
        second_master: None,
        quit: None,
        stop: None,
    };
}

impl Profile {
    /// A server that is found by its command line and its workers, which do tasks and leave at
    /// TERM. The name has to be set.
    pub const OF_TASKS: Self = Self {
        name: "",
        scripts: &[],
        words: &[],
        title: None,
        found: Found::ByBoth,
        workers: Workers::Children(Serves::Tasks),
        replace: Replacement::Signal {
            retire: Signal::TERM,
        },
        signals: Signals::NONE,
        boot_failures: &[],
        is_guarded: false,
        guard: None,
        helpers: None,
    };

    /// The signals that its main process handles. Another program with workers like these does not
    /// handle all of them.
    pub fn handled(&self) -> Vec<Signal> {
        let Signals {
            reload,
            second_master,
            quit,
            stop: _,
        } = self.signals;
        let all = [self.raise(), self.lower(), reload, second_master, quit];
        all.into_iter().flatten().collect()
    }

    /// The signal that stops a worker gracefully. `None`: its server would stop all workers.
    pub const fn retire(&self) -> Option<Signal> {
        match self.replace {
            Replacement::Surge { retire, .. } | Replacement::Signal { retire } => Some(retire),
            Replacement::Never { .. } => None,
        }
    }

    /// The signal to the server to start one more worker.
    pub const fn raise(&self) -> Option<Signal> {
        match self.replace {
            Replacement::Surge { raise, .. } => Some(raise),
            Replacement::Signal { .. } | Replacement::Never { .. } => None,
        }
    }

    /// The worker that the server retires at [`Self::lower`]; `None`: it has no such signal.
    pub const fn retires(&self) -> Option<Retires> {
        match self.replace {
            Replacement::Surge { retires, .. } => Some(retires),
            Replacement::Signal { .. } | Replacement::Never { .. } => None,
        }
    }

    /// The signal to the server to retire one worker.
    pub const fn lower(&self) -> Option<Signal> {
        match self.replace {
            Replacement::Surge { lower, .. } => Some(lower),
            Replacement::Signal { .. } | Replacement::Never { .. } => None,
        }
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Profile({})", self.name)
    }
}

impl PartialEq for Profile {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Profile {}
