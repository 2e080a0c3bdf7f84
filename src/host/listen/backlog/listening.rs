//! Listening sockets and their clients, read from the kernel's tables (proc_pid_net(5)).

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::host::memory::procfs::Proc;

/// The states of `/proc/net/tcp` (`enum` in net/tcp_states.h): a connection, a handshake under way,
/// a listener.
const ESTABLISHED: &str = "01";
const SYN_RECV: &str = "03";
const LISTEN: &str = "0A";
/// In `/proc/net/unix`: `__SO_ACCEPTCON` of linux/net.h.
const ACCEPTS: u32 = 1 << 16;
/// The name that Python's multiprocessing gives to the directory of its sockets
/// (multiprocessing.util).
const MULTIPROCESSING: &str = "/pymp-";

/// A listening socket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Listening {
    Tcp {
        address: SocketAddr,
        /// The user that made it.
        user: u32,
    },
    Unix {
        path: String,
    },
}

impl Listening {
    /// Whether only processes of this machine can connect to it.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Tcp { address, .. } => address.ip().to_canonical().is_loopback(),
            Self::Unix { .. } => true,
        }
    }

    pub(super) const fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp { address, .. } => Some(address.port()),
            Self::Unix { .. } => None,
        }
    }

    /// Whether it belongs to Python's multiprocessing: to a manager, a queue or a fork server.
    pub(super) fn is_of_multiprocessing(&self) -> bool {
        matches!(self, Self::Unix { path } if path.contains(MULTIPROCESSING))
    }
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { address, .. } => address.fmt(f),
            Self::Unix { path } => write!(f, "unix:{path}"),
        }
    }
}

/// The tables of one network namespace.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// By inode.
    pub(super) listening: BTreeMap<u64, Listening>,
    /// The two addresses of each connection, and the inode of the first end; 0 before it is
    /// accepted.
    connections: Vec<(SocketAddr, SocketAddr, u64)>,
}

impl Tables {
    /// Reads the tables of the network namespace of this process.
    pub(super) fn read(proc: &Proc, pid: i32) -> Self {
        let mut tables = Self::default();
        for table in ["tcp", "tcp6"] {
            let text = table_of(proc, pid, table);
            text.lines()
                .filter_map(Row::parse)
                .for_each(|row| tables.add_tcp(&row));
        }
        for line in table_of(proc, pid, "unix").lines() {
            tables.add_unix(line);
        }
        tables
    }

    fn add_tcp(&mut self, row: &Row<'_>) {
        let (Some(address), Ok(inode)) = (address(row.local), row.inode.parse()) else {
            return;
        };
        if row.state == LISTEN {
            let user = row.user.parse().unwrap_or(u32::MAX);
            let listening = Listening::Tcp { address, user };
            self.listening.insert(inode, listening);
        } else if row.state == ESTABLISHED
            && let Some(remote) = self::address(row.remote)
        {
            self.connections.push((address, remote, inode));
        }
    }

    /// Num RefCount Protocol Flags Type St Inode Path
    fn add_unix(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace();
        let (Some(flags), Some(inode)) = (words.nth(3), words.nth(2)) else {
            return;
        };
        let accepts = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & ACCEPTS != 0);
        if let (true, Ok(inode)) = (accepts, inode.parse()) {
            let path = words.collect::<Vec<_>>().join(" ");
            self.listening.insert(inode, Listening::Unix { path });
        }
    }

    /// Whether this listener has clients, and all of them are among `sockets`.
    pub(super) fn serves_only(&self, listener: &Listening, sockets: &[u64]) -> bool {
        let Some(port) = listener.port() else {
            return false;
        };
        let mut clients = (self.connections.iter())
            .filter(|(local, _, _)| local.port() == port)
            .map(|(local, remote, _)| {
                let client = |(its, to, _): &&(_, _, _)| its == remote && to == local;
                self.connections.iter().find(client)
            })
            .peekable();
        clients.peek().is_some()
            && clients.all(|found| found.is_some_and(|(_, _, inode)| sockets.contains(inode)))
    }
}

/// The inode of the socket at the server's end of a connection. `None`: it is not accepted yet.
/// `pid`: a process in its network namespace.
pub(in crate::host) fn accepted(
    proc: &Proc,
    pid: i32,
    server: SocketAddr,
    client: SocketAddr,
) -> Option<u64> {
    let plain = |one: SocketAddr| SocketAddr::new(one.ip().to_canonical(), one.port());
    let (server, client) = (plain(server), plain(client));
    let all = Tables::read(proc, pid).connections;
    let mut ours = all
        .into_iter()
        .filter(|(own, other, _)| (*own, *other) == (server, client));
    ours.find_map(|(_, _, inode)| (inode > 0).then_some(inode))
}

/// Whether one of these sockets listens. `pid`: a process in their network namespace.
pub(in crate::host) fn listens(proc: &Proc, pid: i32, sockets: &[u64]) -> bool {
    let listening = Tables::read(proc, pid).listening;
    let found = sockets.iter().filter_map(|inode| listening.get(inode));
    // Sockets of multiprocessing have names of their own, and no two processes share them.
    found.into_iter().any(|one| !one.is_of_multiprocessing())
}

/// Whether a handshake with one of these ports is under way in the network namespace of this
/// process.
pub(super) fn has_handshake(proc: &Proc, pid: i32, ports: &[u16]) -> bool {
    ["tcp", "tcp6"].iter().any(|table| {
        let text = table_of(proc, pid, table);
        let mut rows = text.lines().filter_map(Row::parse);
        rows.any(|row| {
            row.state == SYN_RECV
                && address(row.local).is_some_and(|address| ports.contains(&address.port()))
        })
    })
}

fn table_of(proc: &Proc, pid: i32, name: &str) -> String {
    proc.text(&format!("{pid}/net/{name}")).unwrap_or_default()
}

/// A line of `/proc/net/tcp`.
struct Row<'a> {
    local: &'a str,
    remote: &'a str,
    state: &'a str,
    user: &'a str,
    inode: &'a str,
}

impl<'a> Row<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace().skip(1);
        Some(Self {
            local: words.next()?,
            remote: words.next()?,
            state: words.next()?,
            user: words.nth(3)?,
            inode: words.nth(1)?,
        })
    }
}

/// Parses `0100007F:1F90`: the address in words of 32 bits in this machine's byte order, and the
/// port as a number.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    let mut rest = host;
    while let Some((word, others)) = rest.split_at_checked(8) {
        bytes.extend(u32::from_str_radix(word, 16).ok()?.to_ne_bytes());
        rest = others;
    }
    let host: IpAddr = match <[u8; 4]>::try_from(&*bytes) {
        Ok(four) => Ipv4Addr::from(four).into(),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(&*bytes).ok()?).into(),
    };
    Some(SocketAddr::new(host.to_canonical(), port))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::host::memory::procfs::tests::kernel;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\
                        \x20  uid  timeout inode\n";

    pub(in crate::host::listen::backlog) fn row(
        local: &str,
        remote: &str,
        state: &str,
        inode: u64,
    ) -> String {
        format!(
            "   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000  1000  0 {inode} 1\n"
        )
    }

    pub(in crate::host::listen::backlog) fn tables(tcp: &str, tcp6: &str, unix: &str) -> Tables {
        let (tcp, tcp6) = (format!("{HEAD}{tcp}"), format!("{HEAD}{tcp6}"));
        let files = [
            ("7/net/tcp", &*tcp),
            ("7/net/tcp6", &*tcp6),
            ("7/net/unix", unix),
        ];
        let (_root, proc) = kernel(&files);
        Tables::read(&proc, 7)
    }

    #[test]
    fn listeners_are_read_with_their_addresses() {
        let unix = "Num RefCount Protocol Flags Type St Inode Path\n\
                    0: 00000002 00000000 00010000 0001 01 31 /tmp/pymp-x/listener-y\n\
                    0: 00000002 00000000 00010000 0001 01 32 /run/a b\n\
                    0: 00000003 00000000 00000000 0001 03 33 /run/a\n";
        let v6 = "00000000000000000000000001000000:1F91";
        let none = "00000000:0000";
        let found = tables(
            &(row("0100007F:1F90", none, "0A", 11) + &row("00000000:0050", none, "0A", 12)),
            &row(v6, none, "0A", 21),
            unix,
        );
        let said = |inode| found.listening[&inode].to_string();
        let local = |inode| found.listening[&inode].is_local();
        assert_eq!((said(11), local(11)), ("127.0.0.1:8080".into(), true));
        assert_eq!((said(12), local(12)), ("0.0.0.0:80".into(), false));
        assert_eq!((said(21), local(21)), ("[::1]:8081".into(), true));
        assert!(found.listening[&31].is_of_multiprocessing());
        assert_eq!(said(32), "unix:/run/a b");
        assert_eq!(found.listening.len(), 5);
    }

    #[test]
    fn a_listener_serves_only_the_service_if_all_its_clients_are_sockets_of_the_service() {
        let (server, client) = ("0100007F:1F90", "0100007F:9C40");
        let listener = row(server, "00000000:0000", "0A", 11);
        let ends = row(server, client, "01", 41) + &row(client, server, "01", 42);
        let both = tables(&(listener.clone() + &ends), "", "");
        let it = &both.listening[&11];
        assert!(both.serves_only(it, &[42]));
        assert!(!both.serves_only(it, &[41]));
        // The client is on another machine, or in another network namespace.
        let one = tables(&(listener.clone() + &row(server, client, "01", 41)), "", "");
        assert!(!one.serves_only(it, &[41, 42]));
        assert!(!tables(&listener, "", "").serves_only(it, &[41, 42]));
    }
}
