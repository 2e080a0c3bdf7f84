//! Connections that wait to be accepted (listen(2)), while their server is about to stop.
//!
//! A server that ends closes its listening sockets, and the kernel resets the connections that wait
//! there: their clients were connected and lose a request that no process has seen. So before the
//! server is told to stop, its sockets refuse new connections, and those that wait are accepted.
//!
//! Only sockets that end with the service are closed to new connections: those that we have bound
//! for it, and its server's own ([`own`]). A socket that a process outside of the service has open
//! as well, a service manager for one, outlives the service, and would stay closed: its queue is
//! served by the next process that gets it. Other sockets of the application stay open, too.

mod closing;
mod listening;
mod own;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Host, discovery::Discovery, procfs::Proc};
use crate::{
    supervisor::{
        event::{Effect, Event},
        spec::ReadyWhen,
    },
    units::{RunId, Timestamp},
};
pub(super) use closing::{Closed, reopen_all};
use closing::{close_file, copied, refuse_newcomers};
use listening::{Listening, Tables, is_approached};
use own::{Service, Tree, choose};

/// Interval of the looks for waiting connections.
const LOOK: Duration = Duration::from_millis(10);
/// Time limit of handshakes that began before. A port scan leaves some that never end.
const HANDSHAKE: Duration = Duration::from_secs(1);

/// The listening sockets of a service, closed to new connections.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    sockets: Vec<OwnedFd>,
    /// A process of the service; handshakes are looked for in its network namespace.
    pid: i32,
    /// Where handshakes would arrive.
    ports: Vec<u16>,
    /// Files of Unix sockets, which get their modes back when this is dropped.
    closed: Vec<Closed>,
    since: Timestamp,
    pub(super) next_look: Timestamp,
}

/// What did not work.
#[derive(Debug, Default)]
struct Trouble {
    /// A socket of the service could not be closed to new connections.
    failed: Option<String>,
    /// Sockets that may or may not belong to the service.
    unknown: Vec<String>,
}

impl Backlog {
    /// Closes the service's sockets to new connections: `ours`, and its server's own.
    fn close(
        proc: &Proc,
        service: &Service,
        ours: BTreeMap<u64, OwnedFd>,
        now: Timestamp,
    ) -> (Self, Trouble) {
        let pid = service.tops.first().copied().unwrap_or_default();
        let mut tables = Tables::read(proc, pid);
        let (tree, failed) = Tree::read(proc, service);
        let unknown = Vec::new();
        let mut trouble = Trouble { failed, unknown };
        let mut backlog = Self {
            pid,
            since: now,
            next_look: now,
            ..Self::default()
        };
        let held = held_elsewhere(proc, service, &tree, &tables);
        let held: BTreeSet<u64> = held.into_iter().chain(ours.keys().copied()).collect();
        let choice = choose(service, &tree, &tables, &held);
        let unknown = choice.unknown.iter();
        trouble.unknown = unknown
            .map(|inode| tables.listening[inode].to_string())
            .collect();
        for (inode, socket) in ours {
            // It may not listen: a datagram socket. The file of one of ours is removed with it.
            if let Some(found) = tables.listening.remove(&inode) {
                let taken = backlog.take(proc, socket, &found);
                let taken = taken.map(|file| file.map(Closed::for_ever));
                trouble.failed = backlog.keep(taken).or(trouble.failed);
            }
        }
        for process in tree.processes() {
            for (number, inode) in &process.sockets {
                if !choice.own.contains(inode) {
                    continue;
                }
                // The same one is in many processes.
                let Some(found) = tables.listening.remove(inode) else {
                    continue;
                };
                match copied(process.pid, *number, *inode) {
                    Ok(Some(socket)) => {
                        let taken = backlog.take(proc, socket, &found);
                        trouble.failed = backlog.keep(taken).or(trouble.failed);
                    }
                    // RACE: it was closed meanwhile here, and may be open in another process.
                    Ok(None) => _ = tables.listening.insert(*inode, found),
                    Err(error) => trouble.failed = Some(error.to_string()),
                }
            }
        }
        (backlog, trouble)
    }

    /// Closes it to new connections. A Unix socket has a file.
    fn take(
        &mut self,
        proc: &Proc,
        socket: OwnedFd,
        found: &Listening,
    ) -> io::Result<Option<Closed>> {
        let closed = match found {
            Listening::Tcp { address, .. } => {
                self.ports.push(address.port());
                refuse_newcomers(&socket).map(|()| None)
            }
            Listening::Unix { .. } => close_file(proc, self.pid, &socket),
        };
        self.sockets.push(socket);
        closed
    }

    /// Keeps the file until its mode is restored, or returns the error.
    fn keep(&mut self, taken: io::Result<Option<Closed>>) -> Option<String> {
        match taken {
            Ok(file) => {
                self.closed.extend(file);
                None
            }
            Err(error) => Some(error.to_string()),
        }
    }

    /// No connection waits, and no handshake is under way.
    fn is_empty(&self, proc: &Proc, now: Timestamp) -> bool {
        let mut polled: Vec<_> = (self.sockets.iter())
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
            .collect();
        // A socket is readable while connections wait in its queue (accept(2)).
        let readable = poll(&mut polled, PollTimeout::ZERO).unwrap_or(0);
        let late = self.ports.is_empty() || now.since(self.since) >= HANDSHAKE;
        readable == 0 && (late || !is_approached(proc, self.pid, &self.ports))
    }

    /// When to look again.
    fn look_later(&mut self, now: Timestamp) {
        self.next_look = now.later(LOOK);
    }

    /// Closes our copies of the sockets, which would keep them open. The files stay closed to new
    /// clients until the run ends.
    pub(super) fn into_files(self) -> Vec<Closed> {
        self.closed
    }
}

/// The listening sockets of these processes that other processes have open as well: we, our keeper,
/// or the one that passed them to us or to the command. They outlive the service.
///
/// All processes of this machine are looked at: some 2 us for each open file, at a stop only.
fn held_elsewhere(proc: &Proc, service: &Service, tree: &Tree, tables: &Tables) -> BTreeSet<u64> {
    let mut sought: BTreeSet<u64> = (tree.sockets().into_iter())
        .filter(|inode| tables.listening.contains_key(inode))
        .collect();
    let mut held = BTreeSet::new();
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        // The files of other users' processes cannot be read. All that we start runs as our
        // user, so a socket of another user was passed to the service.
        let own = nix::unistd::geteuid().as_raw();
        let is_foreign = |inode: &u64| match &tables.listening[inode] {
            Listening::Tcp { user, .. } => *user != own,
            Listening::Unix { .. } => false,
        };
        held.extend(sought.iter().copied().filter(is_foreign));
        sought.retain(|inode| !held.contains(inode));
    }
    let own: BTreeSet<i32> = tree.processes().map(|process| process.pid).collect();
    for pid in proc.processes() {
        if sought.is_empty() {
            break;
        }
        if own.contains(&pid) {
            continue;
        }
        // A process that is gone, or that we may not read, counts as one without sockets.
        let sockets = proc.sockets(pid).unwrap_or_default();
        let found: Vec<_> = (sockets.into_iter())
            .filter(|(_, inode)| sought.contains(inode))
            .collect();
        // RACE: the service may have forked it just now.
        if found.is_empty() || is_below(proc, pid, service.keeper) {
            continue;
        }
        for (_, inode) in found {
            held.extend(sought.take(&inode));
        }
    }
    held
}

fn is_below(proc: &Proc, pid: i32, ancestor: i32) -> bool {
    let parent = |pid: &i32| proc.stat(*pid).ok().map(|stat| stat.ppid);
    // No tree is deeper. If a parent ends meanwhile, reused numbers may form a circle.
    std::iter::successors(parent(&pid), parent)
        .take(256)
        .any(|pid| pid == ancestor)
}

impl Host {
    /// Closes the service's listening sockets to new connections, and watches those that wait.
    /// `told`: sockets by inode that processes have named as their server's.
    pub fn drain_backlog(&mut self, now: Timestamp, id: RunId, told: Vec<(i32, u64)>) {
        let Some(run) = self.run.as_mut().filter(|run| run.id == id) else {
            return;
        };
        let masters = run.discovery.as_ref().map(Discovery::masters);
        let masters = masters.filter(|masters| !masters.is_empty());
        let workers = self.workers.values().filter(|worker| !worker.is_command);
        let service = Service {
            keeper: run.keeper.pid(),
            tops: masters.unwrap_or_else(|| run.root.into_iter().collect()),
            workers: workers.map(|worker| worker.process.pid()).collect(),
            told,
            ready: ready_port(&self.spec.ready.when),
        };
        let (backlog, trouble) = Backlog::close(&self.proc, &service, self.listeners.bound(), now);
        run.backlog = Some(backlog);
        if let Some(error) = trouble.failed {
            let what = format!(
                "close a listening socket of the command to new connections: {error}; connections \
                 that it has not accepted when it ends are reset (`--listen` prevents it)"
            );
            self.fail(what, None, Effect::Other);
        }
        if !trouble.unknown.is_empty() {
            let what = format!(
                "tell which of these listening sockets belong to the service: {}; they stay \
                 open until the command closes them, which resets connections that it has not \
                 accepted; hint: `--ready tcp:ADDR` names one",
                trouble.unknown.join(", ")
            );
            self.fail(what, None, Effect::Other);
        }
        // Usually no connection waits.
        self.look_at_backlog(now);
    }

    /// Reports when all waiting connections have been accepted.
    pub(super) fn look_at_backlog(&mut self, now: Timestamp) {
        let Some(run) = &mut self.run else { return };
        let Some(backlog) = &mut run.backlog else {
            return;
        };
        if now < backlog.next_look {
            return;
        }
        backlog.look_later(now);
        if backlog.is_empty(&self.proc, now) {
            run.end_backlog();
            let run = run.id;
            self.events.push_back(Event::BacklogEmpty { run });
        }
    }
}

/// The port at which a service is asked whether it is ready.
fn ready_port(when: &ReadyWhen) -> Option<u16> {
    let address = match when {
        ReadyWhen::Tcp(address) => address,
        ReadyWhen::Http(url) => {
            let rest = url.strip_prefix("http://").unwrap_or(url);
            rest.split('/').next().unwrap_or_default()
        }
        ReadyWhen::Auto | ReadyWhen::Notify | ReadyWhen::Delay(_) => return None,
    };
    match address.rsplit_once(':') {
        Some((_, port)) => port.parse().ok(),
        None => Some(80),
    }
}
