//! Connections that wait to be accepted (listen(2)) when their server is about to stop.
//!
//! A server that ends closes its listening sockets, and the kernel resets the connections that wait
//! there: their clients were connected, and lose a request that no process has read. So before the
//! server gets its stop signal, its sockets refuse new connections, and the server accepts the
//! connections that wait.
//!
//! Only sockets that end with the service are closed to new connections: the sockets that we have
//! bound for it, and its server's own ([`own`]). A socket that a process outside of the service has
//! open as well, such as a service manager, outlives the service and would stay closed; the next
//! process that gets the socket serves its queue. Other sockets of the application stay open, too.

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

use crate::{host::memory::procfs::Proc, supervisor::spec::ReadyWhen, units::Timestamp};
pub(super) use closing::{Closed, reopen_all};
use closing::{close_file, copy_socket, refuse_new_connections};
use listening::{Listening, Tables, has_handshake};
pub(in crate::host) use listening::{accepted, listens};
pub(in crate::host) use own::Service;
use own::{Tree, choose};

/// Interval of the checks for waiting connections.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// How long to wait for handshakes that have begun. A port scan leaves some that never end.
const HANDSHAKE: Duration = Duration::from_secs(1);

/// The listening sockets of a service, closed to new connections.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    sockets: Vec<OwnedFd>,
    /// A process of the service. The search for handshakes uses its network namespace.
    pid: i32,
    /// The ports at which handshakes arrive.
    ports: Vec<u16>,
    /// Files of Unix sockets. Dropping this restores their modes.
    closed: Vec<Closed>,
    /// When the sockets were closed.
    since: Timestamp,
    next_check: Timestamp,
}

/// Problems in closing the sockets.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// The error, if a socket of the service could not be closed to new connections.
    pub(super) failed: Option<String>,
    /// Sockets that may or may not belong to the service.
    pub(super) unknown: Vec<String>,
}

impl Backlog {
    /// Closes the service's sockets to new connections: `ours`, and its server's own.
    pub(super) fn close(
        proc: &Proc,
        service: &Service,
        ours: BTreeMap<u64, OwnedFd>,
        now: Timestamp,
    ) -> (Self, Trouble) {
        let pid = service.top_pids.first().copied().unwrap_or_default();
        let mut tables = Tables::read(proc, pid);
        let (tree, failed) = Tree::read(proc, service);
        let unknown = Vec::new();
        let mut trouble = Trouble { failed, unknown };
        let mut backlog = Self {
            pid,
            since: now,
            next_check: now,
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
            // A datagram socket does not listen. The file of a socket of ours is removed with the
            // socket.
            if let Some(found) = tables.listening.remove(&inode) {
                let result = backlog.close_socket(proc, socket, &found);
                let result = result.map(|file| file.map(Closed::keep_closed));
                trouble.failed = backlog.keep(result).or(trouble.failed);
            }
        }
        for process in tree.processes() {
            for (number, inode) in &process.sockets {
                if !choice.own.contains(inode) {
                    continue;
                }
                // The same socket is open in many processes.
                let Some(found) = tables.listening.remove(inode) else {
                    continue;
                };
                match copy_socket(process.pid, *number, *inode) {
                    Ok(Some(socket)) => {
                        let result = backlog.close_socket(proc, socket, &found);
                        trouble.failed = backlog.keep(result).or(trouble.failed);
                    }
                    // RACE: this process has just closed it; another one may still have it open.
                    Ok(None) => _ = tables.listening.insert(*inode, found),
                    Err(error) => trouble.failed = Some(error.to_string()),
                }
            }
        }
        (backlog, trouble)
    }

    /// Closes a socket to new connections. For a Unix socket, returns its file.
    fn close_socket(
        &mut self,
        proc: &Proc,
        socket: OwnedFd,
        found: &Listening,
    ) -> io::Result<Option<Closed>> {
        let closed = match found {
            Listening::Tcp { address, .. } => {
                self.ports.push(address.port());
                refuse_new_connections(&socket).map(|()| None)
            }
            Listening::Unix { .. } => close_file(proc, self.pid, &socket),
        };
        self.sockets.push(socket);
        closed
    }

    /// Keeps the file until its mode is restored, or returns the error.
    fn keep(&mut self, result: io::Result<Option<Closed>>) -> Option<String> {
        match result {
            Ok(file) => {
                self.closed.extend(file);
                None
            }
            Err(error) => Some(error.to_string()),
        }
    }

    /// Whether no connection waits and no handshake is under way.
    pub(super) fn is_empty(&self, proc: &Proc, now: Timestamp) -> bool {
        let mut polled: Vec<_> = (self.sockets.iter())
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
            .collect();
        // A socket is readable while connections wait in its queue (accept(2)).
        let readable = poll(&mut polled, PollTimeout::ZERO).unwrap_or(0);
        let late = self.ports.is_empty() || now.since(self.since) >= HANDSHAKE;
        readable == 0 && (late || !has_handshake(proc, self.pid, &self.ports))
    }

    /// When to check again.
    pub(super) const fn next_check(&self) -> Timestamp {
        self.next_check
    }

    /// Sets the time of the next check.
    pub(super) fn check_later(&mut self, now: Timestamp) {
        self.next_check = now.later(CHECK_INTERVAL);
    }

    /// Closes our copies of the sockets, which would keep the sockets open. The files stay closed
    /// to new clients until this start of the command ends.
    pub(super) fn into_files(self) -> Vec<Closed> {
        self.closed
    }
}

/// The listening sockets of these processes that a process outside of the service has open as well:
/// the supervisor, the keeper, or the process that passed them on. They outlive the service.
///
/// This reads the open files of all processes of this machine: some 2 us for each open file, at a
/// stop only.
fn held_elsewhere(proc: &Proc, service: &Service, tree: &Tree, tables: &Tables) -> BTreeSet<u64> {
    let mut sought: BTreeSet<u64> = (tree.sockets().into_iter())
        .filter(|inode| tables.listening.contains_key(inode))
        .collect();
    let mut held = BTreeSet::new();
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        // The files of other users' processes cannot be read. All that we start runs as our user,
        // so a socket of another user was passed to the service.
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
        // A process that has ended, or that we may not read, counts as one without sockets.
        let sockets = proc.sockets(pid).unwrap_or_default();
        let found: Vec<_> = (sockets.into_iter())
            .filter(|(_, inode)| sought.contains(inode))
            .collect();
        // RACE: the service may have forked this process just now.
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
    // No process tree is deeper. If a parent ends meanwhile, reused pids may form a cycle.
    std::iter::successors(parent(&pid), parent)
        .take(256)
        .any(|pid| pid == ancestor)
}

/// The port of the readiness check.
pub(in crate::host) fn ready_port(when: &ReadyWhen) -> Option<u16> {
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
