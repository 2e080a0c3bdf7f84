//! Chooses the sockets of the service among all listening sockets of its processes.
//!
//! An application has other sockets besides those of its server: a helper on loopback, a manager of
//! multiprocessing, a server in a thread. Requests in flight need these sockets until they are
//! answered, so they stay open. The rules, in order:
//!
//! 1. Servers that the agent knows name the sockets that they accept from.
//! 2. Otherwise a server's sockets are those that its master shares with its workers, and a
//!    program's sockets are those of the command itself. A single socket is the service's. Of
//!    several, those that other machines can reach are chosen, and the one of `ready.when`.
//! 3. A socket at the same address belongs to the same service (`SO_REUSEPORT`).
//!
//! All other sockets are unknown and stay open, because a reset of a waiting connection does less
//! harm than failures of requests in flight.

use std::collections::{BTreeMap, BTreeSet};

use super::listening::{Listening, Tables};
use crate::host::memory::procfs::Proc;

/// What is known of a service before its sockets are read.
#[derive(Debug, Default)]
pub(in crate::host) struct Service {
    pub(in crate::host) keeper: i32,
    /// The server's masters; without a server, the command.
    pub(in crate::host) top_pids: Vec<i32>,
    /// The workers of a known server.
    pub(in crate::host) workers: Vec<i32>,
    /// Sockets that the agent has named, as pid and inode.
    pub(in crate::host) named: Vec<(i32, u64)>,
    /// The port of the readiness check.
    pub(in crate::host) ready_port: Option<u16>,
}

/// A process and its sockets: the descriptor and the inode of each.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) sockets: Vec<(i32, u64)>,
}

/// All processes of a service, by their distance from the topmost ones.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) levels: Vec<Vec<Process>>,
}

impl Tree {
    pub(super) fn read(proc: &Proc, service: &Service) -> (Self, Option<String>) {
        let mut wrong = None;
        let mut process = |pid| {
            let sockets = proc.sockets(pid).unwrap_or_else(|error| {
                // A process that has ended meanwhile has no sockets.
                if !error.is_gone() {
                    wrong = Some(error.to_string());
                }
                Vec::new()
            });
            Process { pid, sockets }
        };
        let all: BTreeSet<_> = proc.descendants(service.keeper).into_iter().collect();
        let mut seen: BTreeSet<_> = service.top_pids.iter().copied().collect();
        let mut level = service.top_pids.clone();
        let mut levels = Vec::new();
        while !level.is_empty() {
            let mut next = Vec::new();
            for pid in &level {
                // This fails for a process that has just ended.
                let _ = proc.children(*pid, &mut next);
            }
            levels.push(level.into_iter().map(&mut process).collect());
            next.retain(|pid| all.contains(pid) && seen.insert(*pid));
            level = next;
        }
        // Launchers above the master, and orphans.
        let others = all.difference(&seen).copied();
        levels.push(others.map(&mut process).collect());
        (Self { levels }, wrong)
    }

    pub(super) fn processes(&self) -> impl Iterator<Item = &Process> {
        self.levels.iter().flatten()
    }

    /// The inodes of all sockets.
    pub(super) fn sockets(&self) -> Vec<u64> {
        let all = self.processes().flat_map(|process| &process.sockets);
        all.map(|(_, inode)| *inode).collect()
    }

    /// The distance from the top to the nearest process that has this socket.
    fn level_of(&self, inode: u64) -> Option<usize> {
        self.levels.iter().position(|level| {
            let mut sockets = level.iter().flat_map(|process| &process.sockets);
            sockets.any(|(_, found)| *found == inode)
        })
    }
}

/// The result of the choice.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Choice {
    /// The sockets of the service, by inode.
    pub(super) own: BTreeSet<u64>,
    /// Candidates, if it is unknown which of them belong to the service.
    pub(super) unknown: Vec<u64>,
}

/// Chooses the sockets. `held` are the sockets that processes outside of the service have open as
/// well.
pub(super) fn choose(
    service: &Service,
    tree: &Tree,
    tables: &Tables,
    held: &BTreeSet<u64>,
) -> Choice {
    let listening = &tables.listening;
    let at: BTreeMap<u64, usize> = (listening.keys())
        .filter_map(|inode| Some((*inode, tree.level_of(*inode)?)))
        .collect();
    let named: BTreeSet<u64> = (service.named.iter())
        .filter(|(pid, _)| tree.processes().any(|process| process.pid == *pid))
        .map(|(_, inode)| *inode)
        .filter(|inode| at.contains_key(inode))
        .collect();
    let mut choice = if named.is_empty() {
        choose_by_level(service, tree, tables, (&at, held))
    } else {
        // A child process may run such a server, too. It is farther from the top.
        let top = named.iter().map(|inode| at[inode]).min();
        let own = named.into_iter().filter(|inode| Some(at[inode]) == top);
        Choice {
            own: own.collect(),
            unknown: Vec::new(),
        }
    };
    let addresses: Vec<_> = (choice.own.iter())
        .filter_map(|inode| match &listening[inode] {
            Listening::Tcp { address, .. } => Some(*address),
            Listening::Unix { .. } => None,
        })
        .collect();
    let same = at.keys().filter(|inode| {
        matches!(&listening[inode], Listening::Tcp { address, .. } if addresses.contains(address))
    });
    choice.own.extend(same);
    choice.own.retain(|inode| !held.contains(inode));
    choice
}

fn choose_by_level(
    service: &Service,
    tree: &Tree,
    tables: &Tables,
    (at, held): (&BTreeMap<u64, usize>, &BTreeSet<u64>),
) -> Choice {
    let sockets = tree.sockets();
    let listening = &tables.listening;
    let shared = |inode: u64| {
        let mut workers =
            (tree.processes()).filter(|process| service.workers.contains(&process.pid));
        workers.any(|worker| worker.sockets.iter().any(|(_, found)| *found == inode))
    };
    let mut found: Vec<u64> = (at.keys().copied())
        .filter(|inode| {
            !listening[inode].is_of_multiprocessing()
                && !tables.serves_only(&listening[inode], &sockets)
        })
        .collect();
    if found.iter().any(|inode| at[inode] == 0 && shared(*inode)) {
        found.retain(|inode| at[inode] == 0 && shared(*inode));
    } else {
        let top = found.iter().map(|inode| at[inode]).min();
        found.retain(|inode| Some(at[inode]) == top);
    }
    // A single socket below the command may be a helper's. A socket that several processes have
    // bound with `SO_REUSEPORT` is not.
    let addresses: BTreeSet<_> = (found.iter())
        .map(|inode| listening[inode].to_string())
        .collect();
    let is_at_top = found.iter().all(|inode| at[inode] == 0);
    if addresses.len() == 1 && (is_at_top || found.len() > 1) {
        return Choice {
            own: found.into_iter().collect(),
            unknown: Vec::new(),
        };
    }
    let is_of_ready_check = |socket: &Listening| {
        socket
            .port()
            .is_some_and(|port| Some(port) == service.ready_port)
    };
    let own: BTreeSet<u64> = (found.iter().copied())
        .filter(|inode| !listening[inode].is_local() || is_of_ready_check(&listening[inode]))
        .collect();
    let is_unknown = own.is_empty() && found.iter().all(|inode| !held.contains(inode));
    Choice {
        own,
        unknown: if is_unknown { found } else { Vec::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::listen::backlog::listening::tests::{row, tables};

    const NONE: &str = "00000000:0000";
    /// Ports 8080 and 9000 on loopback, 80 and 9100 on all addresses.
    const LOCAL: &str = "0100007F:1F90";
    const INNER: &str = "0100007F:2328";
    const ALL: &str = "00000000:0050";

    /// Listeners by inode, and levels of processes with the inodes of each.
    struct Scene {
        tcp: String,
        unix: String,
        levels: Vec<Vec<(i32, Vec<u64>)>>,
        service: Service,
        held: BTreeSet<u64>,
    }

    impl Scene {
        fn of(listeners: &[(&str, u64)], levels: &[&[(i32, &[u64])]]) -> Self {
            let tcp = listeners
                .iter()
                .map(|(at, inode)| row(at, NONE, "0A", *inode));
            let level = |level: &&[(i32, &[u64])]| {
                let process = |(pid, inodes): &(i32, &[u64])| (*pid, inodes.to_vec());
                level.iter().map(process).collect()
            };
            Self {
                tcp: tcp.collect(),
                unix: String::new(),
                levels: levels.iter().map(level).collect(),
                service: Service::default(),
                held: BTreeSet::new(),
            }
        }

        fn choose(&self) -> Choice {
            let process = |(pid, inodes): &(i32, Vec<u64>)| Process {
                pid: *pid,
                sockets: inodes.iter().map(|inode| (3, *inode)).collect(),
            };
            let levels = self.levels.iter();
            let levels = levels.map(|level| level.iter().map(process).collect());
            let tree = Tree {
                levels: levels.collect(),
            };
            let tables = tables(&self.tcp, "", &self.unix);
            choose(&self.service, &tree, &tables, &self.held)
        }

        #[track_caller]
        fn is(&self, own: &[u64]) {
            let choice = self.choose();
            assert_eq!(choice.own, own.iter().copied().collect());
            assert!(choice.unknown.is_empty(), "{choice:?}");
        }
    }

    #[test]
    fn a_server_shares_its_sockets_with_its_workers_and_helpers_have_their_own() {
        // A control socket of the master, a helper of the master, a thread in a worker.
        let mut scene = Scene::of(
            &[(LOCAL, 1), (INNER, 2), ("0100007F:2329", 3), (ALL, 4)],
            &[&[(10, &[1, 4])], &[(11, &[1]), (12, &[1, 3]), (13, &[2])]],
        );
        scene.service.workers = vec![11, 12];
        scene.is(&[1]);
    }

    #[test]
    fn the_agent_names_a_socket_that_the_process_tree_does_not_show() {
        // A thread of the master has listened since before the workers were forked.
        let listeners = [(LOCAL, 1), (INNER, 2)];
        let processes: &[&[(i32, &[u64])]] = &[&[(10, &[1, 2])], &[(11, &[1, 2])]];
        let mut scene = Scene::of(&listeners, processes);
        scene.service.workers = vec![11];
        assert_eq!(scene.choose().unknown, [1, 2]);
        scene.service.ready_port = Some(8080);
        scene.is(&[1]);
        scene.service.ready_port = None;
        scene.service.named = vec![(11, 1), (99, 2)];
        scene.is(&[1]);
    }

    #[test]
    fn a_helper_that_runs_a_known_server_is_not_the_service() {
        let listeners = [(LOCAL, 1), (INNER, 2)];
        let processes: &[&[(i32, &[u64])]] = &[&[(10, &[1])], &[(11, &[1]), (12, &[2])]];
        let mut scene = Scene::of(&listeners, processes);
        scene.service.named = vec![(11, 1), (12, 2)];
        scene.is(&[1]);
    }

    #[test]
    fn a_program_has_one_socket_or_the_one_that_other_machines_reach() {
        Scene::of(&[(LOCAL, 1)], &[&[(10, &[1])]]).is(&[1]);
        Scene::of(&[(ALL, 1), (INNER, 2)], &[&[(10, &[1, 2])]]).is(&[1]);
        let two = Scene::of(&[(LOCAL, 1), (INNER, 2)], &[&[(10, &[1, 2])]]);
        assert_eq!(two.choose().unknown, [1, 2]);
        // The socket of a manager's process, or of a helper.
        let below = Scene::of(&[(INNER, 2)], &[&[(10, &[])], &[(11, &[2])]]);
        assert_eq!(below.choose().own, BTreeSet::new());
    }

    #[test]
    fn sockets_of_multiprocessing_are_not_the_service() {
        let mut scene = Scene::of(&[(LOCAL, 1)], &[&[(10, &[1, 7])]]);
        scene.unix = "0: 00000002 00000000 00010000 0001 01 7 /tmp/pymp-x/listener-y\n".to_owned();
        scene.is(&[1]);
        let mut alone = Scene::of(&[], &[&[(10, &[7])]]);
        alone.unix.clone_from(&scene.unix);
        alone.is(&[]);
    }

    #[test]
    fn a_socket_with_clients_in_the_service_only_is_not_the_service() {
        let client = "0100007F:9C40";
        let mut scene = Scene::of(&[(INNER, 2)], &[&[(10, &[2, 40])], &[(11, &[41])]]);
        scene.tcp += &row(INNER, client, "01", 40);
        scene.tcp += &row(client, INNER, "01", 41);
        scene.is(&[]);
    }

    #[test]
    fn a_socket_that_is_held_elsewhere_stays_open() {
        let mut scene = Scene::of(&[(LOCAL, 1), (INNER, 2)], &[&[(10, &[1, 2])]]);
        scene.held = BTreeSet::from([1]);
        scene.is(&[]);
        scene.service.named = vec![(10, 1)];
        scene.is(&[]);
    }

    #[test]
    fn workers_that_each_listen_at_the_same_address_are_one_service() {
        let listeners = [(LOCAL, 1), (LOCAL, 2), (INNER, 3)];
        Scene::of(&listeners, &[&[(10, &[])], &[(11, &[1]), (12, &[2])]]).is(&[1, 2]);
        let mut scene = Scene::of(&listeners, &[&[(10, &[1])], &[(11, &[2]), (12, &[3])]]);
        scene.is(&[1, 2]);
        scene.service.named = vec![(11, 2)];
        scene.is(&[1, 2]);
    }
}
