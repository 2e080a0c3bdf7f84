//! The sockets that are held for the command, so that its end refuses no connection.
//!
//! They are handed to us (sd_listen_fds(3)) or bound by us, live as long as we do, and are given on
//! at each start in the same way: descriptors 3 and up, `LISTEN_FDS`, `LISTEN_FDNAMES`, and a
//! `LISTEN_PID` that is the command's own.
//!
//! On their way through the keeper they lie above the places where the command wants them, so that
//! nothing of the keeper's own is in the way there.

#![expect(
    unsafe_code,
    reason = "a descriptor that is only a number has no owner"
)]

use std::{
    collections::BTreeMap,
    env,
    ffi::{CString, OsStr, OsString},
    fs::{Permissions, metadata, set_permissions},
    io,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixDatagram, UnixListener},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::{
        socket::{
            AddressFamily, Backlog, SockaddrLike, SockaddrStorage, getsockname, listen, setsockopt,
            sockopt,
        },
        stat::fstat,
    },
    unistd::{dup3_raw, execvpe, geteuid},
};

use serde::{Deserialize, Serialize};

use super::exec;
use crate::{servers, supervisor::spec::Listen};

/// Where the first one is (sd_listen_fds(3)).
const FIRST: RawFd = 3;
/// More descriptors than anybody is handed.
const MOST: usize = 1024;
/// Who may connect is decided by the directory, as with a socket of systemd (systemd.socket(5)).
const MODE: u32 = 0o666;

/// All variables of sd_listen_fds(3), which are for one process each.
pub(super) const VARIABLES: [&str; 4] = [
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
];

/// All that are held, in the order in which the command has them.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    held: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    socket: OwnedFd,
    name: String,
    /// The file of a socket that we have bound, and its inode.
    file: Option<(PathBuf, u64)>,
    /// Our service manager holds it, too.
    lent: bool,
}

/// One of them on its way to a successor.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Handed {
    socket: RawFd,
    name: String,
    file: Option<(PathBuf, u64)>,
    #[serde(default)]
    lent: bool,
}

impl Handed {
    /// To be left open.
    pub(super) const fn socket(&self) -> RawFd {
        self.socket
    }
}

impl Listeners {
    /// Takes what we were handed, and binds what else is wished for. A wish for an address of which
    /// we were handed the socket is fulfilled by that.
    pub(super) fn take(wished: &[Listen], name: &str) -> io::Result<Self> {
        Self::with(handed()?, wished, name)
    }

    /// Takes what a predecessor held, and binds what else is wished for now.
    pub(super) fn take_over(
        handed: Vec<Handed>,
        wished: &[Listen],
        name: &str,
    ) -> io::Result<Self> {
        let held = handed.into_iter().map(|one| {
            let lost = || io::Error::other(format!("the socket {} was not left open", one.name));
            Ok(Held {
                socket: exec::adopt(one.socket).ok_or_else(lost)?,
                name: one.name,
                file: one.file,
                lent: one.lent,
            })
        });
        Self::with(held.collect::<io::Result<_>>()?, wished, name)
    }

    /// What a successor needs to hold them.
    pub(super) fn hand_over(&self) -> Vec<Handed> {
        let handed = |one: &Held| Handed {
            socket: one.socket.as_raw_fd(),
            name: one.name.clone(),
            file: one.file.clone(),
            lent: one.lent,
        };
        self.held.iter().map(handed).collect()
    }

    fn with(mut held: Vec<Held>, wished: &[Listen], name: &str) -> io::Result<Self> {
        for wish in wished {
            let addresses = addresses(wish)?;
            if held.iter().any(|one| one.is_at(wish, &addresses)) {
                continue;
            }
            let (socket, file) = match wish {
                Listen::Tcp(_) => (TcpListener::bind(&*addresses).map(OwnedFd::from), None),
                Listen::Unix(path) => match bind(path) {
                    Ok((socket, file)) => (Ok(socket), Some((path.clone(), file))),
                    Err(error) => (Err(error), None),
                },
            };
            let socket = socket.map_err(|error| about(wish, &error))?;
            // As many may wait as `net.core.somaxconn` allows; `std` asks for 128.
            listen(&socket, Backlog::MAXALLOWABLE)?;
            held.push(Held {
                socket,
                name: name.to_owned(),
                file,
                lent: false,
            });
        }
        for one in &held {
            one.send_at_once();
        }
        Ok(Self { held })
    }

    /// What the command's environment says of them; [`Passing`] adds the rest.
    pub(super) fn environment(&self, argv: &[OsString]) -> Vec<(&'static str, String)> {
        let names: Vec<_> = self.held.iter().map(|one| one.name.as_str()).collect();
        let argv: Vec<_> = argv
            .iter()
            .map(|word| word.to_string_lossy().into())
            .collect();
        let mut environment = vec![
            ("LISTEN_FDS", self.held.len().to_string()),
            ("LISTEN_FDNAMES", names.join(":")),
        ];
        let variable = servers::socket_variable(&argv);
        environment.extend(variable.map(|name| (name, FIRST.to_string())));
        environment
    }

    /// Copies of those that end when we do, by inode: we alone have bound them.
    pub(super) fn bound(&self) -> BTreeMap<u64, OwnedFd> {
        let bound = self.held.iter().filter(|one| !one.lent);
        bound
            .filter_map(|one| {
                Some((
                    fstat(&one.socket).ok()?.st_ino,
                    one.socket.try_clone().ok()?,
                ))
            })
            .collect()
    }

    /// Copies for a keeper. They stay open across its exec: to be dropped once it has them.
    pub(super) fn lend(&self) -> io::Result<Vec<OwnedFd>> {
        let lend = |one: &Held| self.above(one.socket.as_fd());
        self.held.iter().map(lend).collect()
    }

    /// A copy of anything for a keeper, where it is not in the way of what is lent.
    pub(super) fn above(&self, descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let count = RawFd::try_from(self.held.len()).map_err(io::Error::other)?;
        let copy = fcntl(descriptor, FcntlArg::F_DUPFD(FIRST.saturating_add(count)))?;
        // SAFETY: it was made just now, and nobody else knows of it.
        Ok(unsafe { OwnedFd::from_raw_fd(copy) })
    }
}

impl Held {
    /// It listens where that wish is; on all of IPv6 is on all of IPv4, too (ipv6(7)).
    fn is_at(&self, wish: &Listen, addresses: &[SocketAddr]) -> bool {
        let Ok(own) = getsockname::<SockaddrStorage>(self.socket.as_raw_fd()) else {
            return false;
        };
        if let Listen::Unix(path) = wish {
            return own.as_unix_addr().and_then(|own| own.path()) == Some(path);
        }
        let Some(own) = ip_address(&own) else {
            return false;
        };
        let is_all = own.ip().is_unspecified() && own.is_ipv6();
        addresses.iter().any(|wished| {
            *wished == own
                || (is_all && wished.ip().is_unspecified() && wished.port() == own.port())
        })
    }

    /// No small answer of a server waits for the acknowledgement of the one before: connections
    /// inherit this. A server that does not know its socket for TCP does not set it itself.
    fn send_at_once(&self) {
        let is_ip = getsockname::<SockaddrStorage>(self.socket.as_raw_fd())
            .is_ok_and(|own| ip_address(&own).is_some());
        if is_ip {
            // A datagram socket has no such option.
            let _ = setsockopt(&self.socket, sockopt::TcpNoDelay, &true);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((path, inode)) = &self.file
            && metadata(path).is_ok_and(|found| found.ino() == *inode)
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What our service manager has opened for us.
fn handed() -> io::Result<Vec<Held>> {
    let is_ours = env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let count = env::var("LISTEN_FDS").ok().filter(|_| is_ours);
    let count = count.and_then(|count| count.parse::<usize>().ok());
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut held = Vec::new();
    for number in (FIRST..).take(count.unwrap_or(0).min(MOST)) {
        // SAFETY: it is asked for its flags; that it may not be open is the answer.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        if flags < 0 {
            let text = format!("LISTEN_FDS has a descriptor {number} that is not open");
            return Err(io::Error::other(text));
        }
        // SAFETY: by the agreement of LISTEN_PID it is open and ours alone. Once only: the machine
        // is taken hold of once.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        held.push(Held {
            socket,
            name: names.next().filter(|name| !name.is_empty()).map_or_else(
                // As sd_listen_fds_with_names(3) calls it.
                || "unknown".to_owned(),
                str::to_owned,
            ),
            file: None,
            lent: true,
        });
    }
    Ok(held)
}

fn addresses(wish: &Listen) -> io::Result<Vec<SocketAddr>> {
    match wish {
        Listen::Unix(_) => Ok(Vec::new()),
        Listen::Tcp(address) => match address.to_socket_addrs() {
            Ok(addresses) => Ok(addresses.collect()),
            Err(error) => Err(about(wish, &error)),
        },
    }
}

fn about(wish: &Listen, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("listen on {wish}: {error}"))
}

fn ip_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    match address.family()? {
        AddressFamily::Inet => Some(SocketAddr::V4((*address.as_sockaddr_in()?).into())),
        AddressFamily::Inet6 => Some(SocketAddr::V6((*address.as_sockaddr_in6()?).into())),
        _ => None,
    }
}

/// Binds a path that is free, or that somebody has left who does not listen any more.
fn bind(path: &Path) -> io::Result<(OwnedFd, u64)> {
    if let Ok(found) = path.symlink_metadata() {
        if !found.file_type().is_socket() {
            let text = "a file that is no socket is there";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        // A datagram socket is never connected to a stream socket, and only of one that nobody has
        // open any more it is said that it refuses (unix(7), connect(2)).
        let found = metadata(path)?;
        if found.mode() & 0o777 == 0 && found.uid() == geteuid().as_raw() {
            // A supervisor that was killed during a stop left it closed, even to its owner.
            set_permissions(path, Permissions::from_mode(0o600))?;
        }
        let refusal = UnixDatagram::unbound()?.connect(path);
        if refusal.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            std::fs::remove_file(path)?;
        }
    }
    let socket = UnixListener::bind(path)?;
    set_permissions(path, Permissions::from_mode(MODE))?;
    Ok((socket.into(), metadata(path)?.ino()))
}

/// What of this is in the keeper: the sockets in their places, closed at any exec but the one.
#[derive(Debug, Default)]
pub(super) struct Placed {
    sockets: Vec<OwnedFd>,
}

impl Placed {
    /// Moves what the supervisor has lent to where the command wants it.
    pub(super) fn move_in(lent: &[RawFd]) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for (place, number) in (FIRST..).zip(lent) {
            // SAFETY: the supervisor has opened it for us alone; it is closed behind the copy.
            let socket = unsafe { OwnedFd::from_raw_fd(*number) };
            // SAFETY: whatever was in this place, nothing here has it: what the supervisor has
            // opened for us lies above, and we have opened nothing yet.
            sockets.push(unsafe { dup3_raw(&socket, place, OFlag::O_CLOEXEC)? });
        }
        Ok(Self { sockets })
    }

    /// Everything for executing the command with them, ready before the fork. `None`: there are
    /// none.
    pub(super) fn passing(&self, program: &OsStr, argv: &[OsString]) -> Option<Passing> {
        if self.sockets.is_empty() {
            return None;
        }
        let word = |text: &OsStr| CString::new(text.as_bytes()).unwrap_or_default();
        let environ = env::vars_os().map(|(name, value)| {
            let mut text = name;
            text.push("=");
            text.push(value);
            word(&text)
        });
        Some(Passing {
            program: word(program),
            argv: argv.iter().map(|text| word(text)).collect(),
            environ: environ.collect(),
            sockets: self.sockets.iter().map(AsRawFd::as_raw_fd).collect(),
        })
    }
}

/// An exec that passes the sockets on.
#[derive(Debug)]
pub(super) struct Passing {
    program: CString,
    argv: Vec<CString>,
    environ: Vec<CString>,
    sockets: Vec<RawFd>,
}

impl Passing {
    /// In the command's process: executes it. `std` would replace the environment after all that we
    /// could do to it, and who is meant by the sockets is only known now.
    pub(super) fn execute(&mut self) -> io::Result<()> {
        for socket in &self.sockets {
            // SAFETY: a flag of a descriptor that the keeper had open when it forked us.
            if unsafe { libc::fcntl(*socket, libc::F_SETFD, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        let own = format!("LISTEN_PID={}", std::process::id());
        self.environ.push(CString::new(own)?);
        match execvpe(&self.program, &self.argv, &self.environ) {
            Ok(never) => match never {},
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_wish_is_bound_and_what_is_left_behind_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("http");
        drop(UnixListener::bind(&path).unwrap());
        let wishes = [
            Listen::Tcp("127.0.0.1:0".into()),
            Listen::Unix(path.clone()),
        ];
        let held = Listeners::take(&wishes, "shop").unwrap();
        let said = |argv: &str| {
            let words: Vec<_> = held.environment(&[argv.into()]);
            words
                .iter()
                .map(|(_, value)| value.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(said("gunicorn"), ["2", "shop:shop"]);
        assert_eq!(said("uvicorn"), ["2", "shop:shop", "3"]);
        let mode = metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        let address = getsockname::<SockaddrStorage>(held.held[0].socket.as_raw_fd()).unwrap();
        let address = ip_address(&address).unwrap();
        TcpStream::connect(address).unwrap();
        let second = Listeners::take(&wishes[1..], "shop").unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse, "{second}");
        drop(held);
        assert!(!path.exists());
        std::fs::write(&path, "").unwrap();
        assert!(Listeners::take(&wishes[1..], "shop").is_err());
        assert!(path.exists());
    }

    #[test]
    fn connections_inherit_that_nothing_waits() {
        let wishes = [Listen::Tcp("127.0.0.1:0".into())];
        let held = Listeners::take(&wishes, "shop").unwrap();
        let listener = TcpListener::from(held.held[0].socket.try_clone().unwrap());
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(listener.accept().unwrap().0.nodelay().unwrap());
    }

    #[test]
    fn a_file_that_was_left_closed_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let path = folder.path().join("http");
        let bound = std::thread::spawn(move || {
            // SAFETY: the bare call changes this thread only, which ends here. Root may connect to
            // a file of any mode; without root it fails, and the test means as much.
            unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
            drop(UnixListener::bind(&path).unwrap());
            set_permissions(&path, Permissions::from_mode(0o0)).unwrap();
            bind(&path).map(|_| ())
        });
        bound.join().unwrap().unwrap();
    }

    #[test]
    fn a_socket_that_was_handed_to_us_fulfils_a_wish() {
        let is_at = |listener: OwnedFd, wish: Listen| {
            let held = Held {
                socket: listener,
                name: String::new(),
                file: None,
                lent: false,
            };
            held.is_at(&wish, &addresses(&wish).unwrap())
        };
        let tcp = |address: &str| TcpListener::bind(address).unwrap();
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let one = tcp("127.0.0.1:0");
        let wish = Listen::Tcp(format!("127.0.0.1:{}", port(&one)));
        assert!(is_at(one.try_clone().unwrap().into(), wish));
        let wish = Listen::Tcp(format!("0.0.0.0:{}", port(&one)));
        assert!(!is_at(one.into(), wish));
        if let Ok(all) = TcpListener::bind("[::]:0") {
            let wish = Listen::Tcp(format!("0.0.0.0:{}", port(&all)));
            assert!(is_at(all.into(), wish));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("http");
        let unix = UnixListener::bind(&path).unwrap();
        assert!(is_at(unix.into(), Listen::Unix(path)));
    }
}
