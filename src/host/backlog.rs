//! Connections that wait to be accepted (listen(2)), while their server is about to stop.
//!
//! A server that ends closes its listening sockets, and the kernel resets whoever waits there:
//! clients that were connected lose a request which nobody has seen. So before it is told to stop
//! nobody new is let in, and those who wait are let through.
//!
//! Its listening sockets are copied (pidfd_getfd(2), Linux 5.6). On TCP they are then bound to an
//! interface that does not exist (`SO_BINDTOIFINDEX`, for anybody since Linux 5.7; a socket filter
//! wants `CAP_NET_ADMIN` there), so that the kernel refuses whoever comes, as it does when nobody
//! listens. A Unix socket is closed to others by the mode of its file (unix(7)). Sockets that we
//! were given, by a service manager for one, keep their queue for who comes next: they stay open.

#![expect(
    unsafe_code,
    reason = "pidfd_getfd and SO_BINDTOIFINDEX have no safe form"
)]

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::PathBuf,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{UnixAddr, getsockname},
        stat::fstat,
    },
};

use super::{Host, pidfd::PidFd, procfs::Proc};
use crate::{
    supervisor::event::{Effect, Event},
    units::{RunId, Timestamp},
};

/// How often it is looked whether somebody still waits.
const LOOK: Duration = Duration::from_millis(10);
/// A handshake that was begun before takes no longer. A port scan leaves some that never end.
const HANDSHAKE: Duration = Duration::from_secs(1);

/// The states of `/proc/net/tcp` (`enum` in net/tcp_states.h): a handshake under way, a listener.
const SYN_RECV: &str = "03";
const LISTEN: &str = "0A";
/// In `/proc/net/unix`: `__SO_ACCEPTCON` of linux/net.h.
const ACCEPTS: u32 = 1 << 16;

/// The listening sockets of a server, closed to newcomers.
#[derive(Debug)]
pub(super) struct Backlog {
    sockets: Vec<OwnedFd>,
    /// Whose table of connections tells of handshakes, and where they would arrive.
    pid: i32,
    ports: Vec<String>,
    since: Timestamp,
    pub(super) next_look: Timestamp,
}

/// A socket that listens, as the kernel's tables have it.
enum Listening {
    /// Its port, in hexadecimal digits.
    Tcp(String),
    Unix,
}

impl Backlog {
    /// Closes the listening sockets of these processes to newcomers: those that are `ours`, and
    /// those that they opened themselves. What else is open here we were given, and others hold it.
    /// The first process tells what listens. With it comes what did not work.
    pub(super) fn close(
        proc: &Proc,
        pids: &[i32],
        ours: BTreeMap<u64, OwnedFd>,
        now: Timestamp,
    ) -> (Self, Option<String>) {
        let pid = pids.first().copied().unwrap_or_default();
        let mut listening = listening(proc, pid);
        let mut backlog = Self {
            sockets: Vec::new(),
            pid,
            ports: Vec::new(),
            since: now,
            next_look: now,
        };
        let mut wrong = None;
        for (inode, socket) in ours {
            if let Some(found) = listening.remove(&inode)
                && let Err(error) = backlog.take(proc, socket, found)
            {
                wrong = Some(error.to_string());
            }
        }
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        for (_, inode) in proc.sockets(own).unwrap_or_default() {
            listening.remove(&inode);
        }
        for &pid in pids {
            if listening.is_empty() {
                break;
            }
            let files = proc.sockets(pid).unwrap_or_else(|error| {
                // One that has ended meanwhile has nothing.
                if !error.is_gone() {
                    wrong = Some(error.to_string());
                }
                Vec::new()
            });
            for (number, inode) in files {
                let Some(found) = listening.remove(&inode) else {
                    continue;
                };
                let taken = match copied(pid, number, inode) {
                    Ok(Some(socket)) => backlog.take(proc, socket, found),
                    Ok(None) => Ok(()),
                    Err(error) => Err(error),
                };
                if let Err(error) = taken {
                    wrong = Some(error.to_string());
                }
            }
        }
        (backlog, wrong)
    }

    /// Lets nobody in there any more.
    fn take(&mut self, proc: &Proc, socket: OwnedFd, found: Listening) -> io::Result<()> {
        match found {
            Listening::Tcp(port) => {
                refuse_newcomers(&socket)?;
                self.ports.push(port);
            }
            Listening::Unix => {
                if let Some(file) = file_of(proc, self.pid, &socket) {
                    fs::set_permissions(file, fs::Permissions::from_mode(0o0))?;
                }
            }
        }
        self.sockets.push(socket);
        Ok(())
    }

    /// Nobody waits, and nobody is about to.
    pub(super) fn is_empty(&self, proc: &Proc, now: Timestamp) -> bool {
        let mut polled: Vec<_> = (self.sockets.iter())
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
            .collect();
        // Readable is one in whose queue somebody is (accept(2)).
        let readable = poll(&mut polled, PollTimeout::ZERO).unwrap_or(0);
        let late = self.ports.is_empty() || now.since(self.since) >= HANDSHAKE;
        readable == 0 && (late || !self.is_approached(proc))
    }

    /// When to look again.
    pub(super) fn look_later(&mut self, now: Timestamp) {
        self.next_look = now.later(LOOK);
    }

    fn is_approached(&self, proc: &Proc) -> bool {
        ["net/tcp", "net/tcp6"].iter().any(|table| {
            let text = proc.text(&format!("{}/{table}", self.pid));
            let text = text.unwrap_or_default();
            let mut rows = text.lines().filter_map(Row::parse);
            rows.any(|row| row.state == SYN_RECV && self.ports.iter().any(|port| port == row.port))
        })
    }
}

impl Host {
    /// Closes the command's listening sockets to newcomers, and watches those who wait there.
    pub(super) fn drain_backlog(&mut self, now: Timestamp, id: RunId) {
        let Some(run) = self.run.as_mut().filter(|run| run.id == id) else {
            return;
        };
        let mut pids = self.proc.descendants(run.keeper.pid());
        if let Some(root) = run.root {
            pids.retain(|pid| *pid != root);
            pids.insert(0, root);
        }
        let (backlog, wrong) = Backlog::close(&self.proc, &pids, self.listeners.bound(), now);
        run.backlog = Some(backlog);
        if let Some(error) = wrong {
            let what = format!(
                "let nobody into a listening socket of the command any more: {error}; connections \
                 that it has not accepted when it ends are reset (`--listen` prevents it)"
            );
            self.fail(what, None, Effect::Other);
        }
        // Mostly nobody waits.
        self.look_at_backlog(now);
    }

    /// Whether everybody has been accepted.
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
            // Our copies would keep the sockets open.
            run.backlog = None;
            let run = run.id;
            self.events.push_back(Event::BacklogEmpty { run });
        }
    }
}

/// A line of `/proc/net/tcp` (proc_pid_net(5)).
struct Row<'a> {
    port: &'a str,
    state: &'a str,
    inode: &'a str,
}

impl<'a> Row<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (_, port) = words.nth(1)?.rsplit_once(':')?;
        let state = words.nth(1)?;
        let inode = words.nth(5)?;
        Some(Self { port, state, inode })
    }
}

/// All that listens where this process is, by inode.
fn listening(proc: &Proc, pid: i32) -> BTreeMap<u64, Listening> {
    let table = |name| proc.text(&format!("{pid}/net/{name}")).unwrap_or_default();
    let mut found = BTreeMap::new();
    for text in [table("tcp"), table("tcp6")] {
        let rows = text.lines().filter_map(Row::parse);
        for row in rows.filter(|row| row.state == LISTEN) {
            if let Ok(inode) = row.inode.parse() {
                found.insert(inode, Listening::Tcp(row.port.to_owned()));
            }
        }
    }
    // Num RefCount Protocol Flags Type St Inode Path
    for line in table("unix").lines() {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let (Some(flags), Some(inode)) = (words.get(3), words.get(6)) else {
            continue;
        };
        let accepts = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & ACCEPTS != 0);
        if let (true, Ok(inode)) = (accepts, inode.parse()) {
            found.insert(inode, Listening::Unix);
        }
    }
    found
}

/// Another process's socket, as a descriptor of ours.
fn copied(pid: i32, number: i32, inode: u64) -> io::Result<Option<OwnedFd>> {
    let process = PidFd::open(pid)?;
    // SAFETY: takes numbers, returns a new descriptor or -1.
    let copy = unsafe {
        libc::syscall(
            libc::SYS_pidfd_getfd,
            process.as_fd().as_raw_fd(),
            number,
            0,
        )
    };
    let copy = i32::try_from(copy).map_err(io::Error::other)?;
    if copy < 0 {
        let error = io::Error::last_os_error();
        // RACE: it was closed meanwhile, or its process has ended.
        let gone = matches!(error.raw_os_error(), Some(libc::EBADF | libc::ESRCH));
        return if gone {
            Ok(None)
        } else {
            Err(io::Error::other(format!("pidfd_getfd: {error}")))
        };
    }
    // SAFETY: the kernel has just given it to us.
    let socket = unsafe { OwnedFd::from_raw_fd(copy) };
    // RACE: the number may be another file's by now.
    let same = fstat(&socket).is_ok_and(|found| found.st_ino == inode);
    Ok(same.then_some(socket))
}

/// The file of a Unix socket, as its server sees it; `None` for an address without one.
fn file_of(proc: &Proc, pid: i32, socket: &OwnedFd) -> Option<PathBuf> {
    let address = getsockname::<UnixAddr>(socket.as_raw_fd()).ok()?;
    // One that is relative was so to a folder that nobody knows any more.
    let path = address.path()?.strip_prefix("/").ok()?;
    Some(proc.of(pid, "root").join(path))
}

/// Bound to an interface that does not exist, a listener meets nobody any more. What was connected
/// or is in a handshake stays as it is.
fn refuse_newcomers(socket: &OwnedFd) -> io::Result<()> {
    let nowhere = libc::c_int::MAX;
    let length = libc::socklen_t::try_from(size_of_val(&nowhere)).map_err(io::Error::other)?;
    // SAFETY: the number lives until the call returns; the kernel copies it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTOIFINDEX,
            (&raw const nowhere).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        let error = io::Error::last_os_error();
        Err(io::Error::other(format!("SO_BINDTOIFINDEX: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
        os::unix::net::UnixStream,
        process::{Child, ChildStdin, Command, Stdio},
    };

    use nix::poll::PollTimeout;

    use super::*;

    /// Listens on what `make` makes, says where, and accepts one connection for each line it reads.
    struct Server {
        child: Child,
        orders: ChildStdin,
        address: String,
    }

    impl Server {
        fn start(make: &str) -> Self {
            Self::with(make, Stdio::inherit())
        }

        /// Has this as its standard error.
        fn with(make: &str, error: Stdio) -> Self {
            let script = format!(
                "import socket, sys\n{make}\ns.listen()\nprint(where, flush=True)\n\
                 for line in sys.stdin: s.accept()[0].sendall(b'x')\n"
            );
            let mut child = Command::new("python3")
                .args(["-c", &script])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(error)
                .spawn()
                .unwrap();
            let mut address = String::new();
            let out = child.stdout.take().unwrap();
            BufReader::new(out).read_line(&mut address).unwrap();
            Self {
                orders: child.stdin.take().unwrap(),
                address: address.trim().to_owned(),
                child,
            }
        }

        fn close(&self) -> Backlog {
            let pid = i32::try_from(self.child.id()).unwrap();
            let (now, none) = (Timestamp::default(), BTreeMap::new());
            let (backlog, wrong) = Backlog::close(&Proc::default(), &[pid], none, now);
            assert!(wrong.is_none(), "{wrong:?}");
            backlog
        }

        fn accept(&mut self) {
            self.orders.write_all(b"go\n").unwrap();
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn becomes_readable(stream: &impl AsFd) {
        let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut polled, PollTimeout::from(10_000_u16)), Ok(1));
    }

    #[test]
    fn who_waits_at_a_port_is_let_through_and_nobody_else() {
        for (family, host) in [
            ("AF_INET", Ipv4Addr::LOCALHOST.into()),
            ("AF_INET6", Ipv6Addr::LOCALHOST.into()),
        ] {
            let host: IpAddr = host;
            if TcpListener::bind((host, 0)).is_err() {
                println!("{host} is not there: not tested");
                continue;
            }
            let mut server = Server::start(&format!(
                "s = socket.socket(socket.{family})\ns.bind(('{host}', 0))\n\
                 where = s.getsockname()[1]"
            ));
            let address = (host, server.address.parse::<u16>().unwrap());
            let first = TcpStream::connect(address).unwrap();
            let backlog = server.close();
            let proc = Proc::default();
            assert!(!backlog.is_empty(&proc, Timestamp::default()));
            let late = TcpStream::connect(address).map_err(|error| error.kind());
            assert_eq!(late.err(), Some(io::ErrorKind::ConnectionRefused));
            server.accept();
            becomes_readable(&first);
            assert!(backlog.is_empty(&proc, Timestamp::default()));
        }
    }

    #[test]
    fn a_unix_socket_is_closed_by_the_mode_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b");
        let path = path.to_str().unwrap();
        let mut server = Server::start(&format!(
            "s = socket.socket(socket.AF_UNIX)\nwhere = '{path}'\ns.bind(where)"
        ));
        let first = UnixStream::connect(path).unwrap();
        let backlog = server.close();
        assert!(!backlog.is_empty(&Proc::default(), Timestamp::default()));
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0);
        server.accept();
        becomes_readable(&first);
        assert!(backlog.is_empty(&Proc::default(), Timestamp::default()));
    }

    #[test]
    fn a_socket_that_we_were_given_is_left_alone() {
        // As one of a service manager: it is open here, and not ours.
        let given = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = given.local_addr().unwrap();
        let copy = OwnedFd::from(given.try_clone().unwrap());
        let server = Server::with("s = socket.socket(fileno=2)\nwhere = 0", copy.into());
        let waits = TcpStream::connect(address).unwrap();
        let backlog = server.close();
        assert!(backlog.is_empty(&Proc::default(), Timestamp::default()));
        drop(TcpStream::connect(address).unwrap());
        drop((waits, given));
    }
}
