//! Finding a server's master and workers among the processes of the command.
//!
//! The master is the topmost process whose command line is gunicorn's: the command itself, or a
//! process that a shell script or a launcher has started. A program of any name that embeds
//! gunicorn is a master as well: it holds heartbeat files, and its forks hold the same files.
//!
//! A worker is a fork of the master that has not executed a program (its stack has the same
//! address, which execve(2) draws anew), and that holds a heartbeat file which the master holds
//! too, and no other worker. The master makes that file before it forks, so a fork without one is a
//! helper and not a worker. Gunicorn's dirty arbiter is such a helper: the files of the dirty
//! workers below it are its own, and not the master's. A second master (USR2) is a child that has
//! executed gunicorn.
//!
//! Which children of another server are its workers, and when they serve, is in its profile
//! (`servers/`).

pub(super) mod forks;
pub mod heartbeat;
pub(super) mod helpers;
mod kin;
mod overlap;
mod search;
#[cfg(test)]
mod tests;
mod waits;

use std::io;

use super::{clock, context::Context, kernel_events::Source, memory::procfs::Proc};
use crate::{
    servers::{fleet, profile::Profile},
    supervisor::{input::Input, spec::Kind},
    units::Timestamp,
};
use forks::Forks;
use overlap::Waits;
pub(super) use search::{Finding, SearchState};
use search::{Search, server_below};

/// An entrypoint may migrate a database before it starts the server, so the search for a server
/// runs once a second, for an hour. With many processes a search takes long, so there are fewer.
const SERVER_SEARCHES_MAX: u32 = 3600;
/// After a search for a server there is a pause of this many times its CPU time: 12 s after a
/// search of 60 ms. On a busy machine it lasts longer, and a server is found as soon.
const SERVER_SEARCH_PAUSE: u32 = 200;

/// See the module.
#[derive(Debug)]
pub(super) struct Discovery {
    /// `None` if the kernel does not report forks to us.
    forks: Option<Forks>,
    /// The search for workers, while a server runs.
    search: Option<Search>,
    server_searches: ServerSearches,
}

/// Searches for a server below a command that counts as one worker.
#[derive(Debug, Default)]
struct ServerSearches {
    /// Searches that are still allowed for this start of the command.
    left: u32,
    /// No search is made before this time.
    next: Timestamp,
    /// How long the command has waited for connections at the sockets that are passed to it.
    waits: Waits,
}

impl Discovery {
    pub(super) fn new() -> Self {
        Self {
            forks: Forks::listen().ok(),
            search: None,
            server_searches: ServerSearches::default(),
        }
    }

    /// Watches for forks.
    pub(super) fn watch(&self, context: &mut Context) -> io::Result<()> {
        if let Some(forks) = &self.forks {
            context.watches_mut().watch(forks, Source::Forks)?;
        }
        Ok(())
    }

    /// Continues the search of the previous binary.
    pub(super) fn take_over(
        &mut self,
        now: Timestamp,
        server: &'static Profile,
        state: SearchState,
    ) {
        let search = Search::take_over(state, server, self.forks.is_some(), now);
        let masters = search.masters();
        self.search = Some(search);
        self.watch_forks_of(&masters);
    }

    /// `waiting`: copies that accept connections and are not known to be ready, so that the new
    /// binary has to find them again.
    pub(super) fn hand_over(&self, waiting: &[i32]) -> Option<SearchState> {
        let search = self.search.as_ref();
        search.map(|search| search.hand_over(waiting))
    }

    /// The command is about to be started.
    pub(super) fn begin_start(&mut self) {
        self.search = None;
        self.server_searches = ServerSearches {
            left: SERVER_SEARCHES_MAX,
            ..ServerSearches::default()
        };
    }

    /// Starts the search: the command is a server, and has executed as `root`.
    pub(super) fn begin_search(&mut self, now: Timestamp, server: &'static Profile, root: i32) {
        self.search = Some(Search::new(root, server, self.forks.is_some(), now));
    }

    /// This start of the command is over.
    pub(super) fn end_start(&mut self) {
        self.search = None;
        self.server_searches = ServerSearches::default();
    }

    /// When the next search is due.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.search.as_ref().map(Search::deadline)
    }

    /// The masters, in the order in which they were found. `None`: no search is running.
    pub(super) fn masters(&self) -> Option<Vec<i32>> {
        self.search.as_ref().map(Search::masters)
    }

    /// The master that gets signals.
    pub(super) fn main_master(&self) -> Option<i32> {
        self.search.as_ref()?.main_master()
    }

    /// See [`Search::helpers`].
    pub(super) fn helpers(&self) -> Vec<(i32, bool)> {
        self.search
            .as_ref()
            .map(Search::helpers)
            .unwrap_or_default()
    }

    /// Whether this is a master or a child of one.
    pub(super) fn is_master_or_child(&self, pid: i32) -> bool {
        self.search
            .as_ref()
            .is_some_and(|search| search.is_master_or_child(pid))
    }

    /// Forgets a process that has ended.
    pub(super) fn forget(&mut self, pid: i32) {
        if let Some(search) = &mut self.search {
            search.forget(pid);
        }
    }

    /// See [`Search::successor`].
    pub(super) fn successor(&mut self, proc: &Proc) -> Option<i32> {
        self.search.as_mut()?.successor(proc)
    }

    /// Handles fork events.
    pub(super) fn on_forks(&mut self, now: Timestamp) {
        if self.forks.as_ref().is_some_and(Forks::take)
            && let Some(search) = &mut self.search
        {
            search.scan_at_once(now);
        }
    }

    /// Searches, if a search is due.
    pub(super) fn scan(&mut self, proc: &Proc, now: Timestamp) -> Vec<Finding> {
        let due = self.search.as_mut().filter(|it| it.deadline() <= now);
        let Some(search) = due else {
            return Vec::new();
        };
        let before = search.masters();
        let findings = search.scan(proc, now);
        let masters = search.masters();
        if before != masters {
            self.watch_forks_of(&masters);
        }
        findings
    }

    fn watch_forks_of(&mut self, masters: &[i32]) {
        if let Some(forks) = &self.forks
            && forks.watch(masters).is_err()
        {
            // The slow scan continues; it finds workers up to a second later.
            self.forks = None;
        }
    }

    /// Finds a server that a script or an unknown launcher has started, among the running
    /// processes; or finds out that the command is a program that accepts connections at the
    /// sockets that are passed to it. Reports it once for each start.
    pub(super) fn search_for_server(
        &mut self,
        context: &mut Context,
        now: Timestamp,
        root: Option<i32>,
    ) {
        let spec = context.spec();
        let is_one = matches!(spec.kind, Kind::Single);
        if !is_one || !spec.kind_is_guessed || context.is_job() {
            return;
        }
        let searches = &mut self.server_searches;
        if searches.left == 0 || now < searches.next {
            return;
        }
        searches.left -= 1;
        let Some(root) = root else { return };
        let begun = clock::cpu_time();
        let mut found = server_below(context.proc(), root);
        if found.is_none() && spec.overlap && searches.waits.check(context.proc(), now, root) {
            found = Some((root, &fleet::PROFILE));
        }
        let took = clock::cpu_time().since(begun);
        searches.next = now.later(took.saturating_mul(SERVER_SEARCH_PAUSE));
        if let Some((pid, server)) = found {
            searches.left = 0;
            context.tell(Input::ServerFound { pid, server });
        }
    }
}
