//! The listening sockets that are held for the command, so that its restart refuses no connection.
//!
//! They were passed to us (sd_listen_fds(3)) or bound by us, and live as long as we do. Each start
//! of the command gets them in the same way: as descriptors 3 and up, with `LISTEN_FDS`,
//! `LISTEN_FDNAMES`, and a `LISTEN_PID` that is the command's own.
//!
//! On their way through the keeper, their numbers are above the ones that the command expects, so
//! that no descriptor of the keeper is in the way.

#![expect(unsafe_code, reason = "a descriptor given as a number has no owner")]

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

use crate::{host::process::exec, servers, supervisor::spec::Listen};

/// The first descriptor that is passed (sd_listen_fds(3)).
const FIRST_FD: RawFd = 3;
/// More descriptors than any service manager passes.
const PASSED_MAX: usize = 1024;
/// The mode of a bound socket. Its directory decides who may connect, as with a socket of systemd
/// (systemd.socket(5)).
const MODE: u32 = 0o666;

/// All variables of sd_listen_fds(3). Each is for one process only.
pub(in crate::host) const VARIABLES: [&str; 4] = [
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
];

/// All held sockets, in the order in which the command gets them.
#[derive(Debug, Default)]
pub(in crate::host) struct Listeners {
    held: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    socket: OwnedFd,
    name: String,
    /// The file of a socket that we have bound, and its inode.
    file: Option<(PathBuf, u64)>,
    /// Our service manager has passed it to us, and holds it, too.
    is_passed: bool,
}

/// One socket, as it is handed over to the new binary.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::host) struct ListenerState {
    socket: RawFd,
    name: String,
    file: Option<(PathBuf, u64)>,
    #[serde(default, rename = "lent")]
    is_passed: bool,
}

impl ListenerState {
    /// The descriptor, which stays open.
    pub(in crate::host) const fn socket(&self) -> RawFd {
        self.socket
    }
}

impl Listeners {
    /// Takes the sockets that were passed to us, and binds the other sockets of the settings. An
    /// address whose socket was passed is not bound.
    pub(in crate::host) fn take(settings: &[Listen], name: &str) -> io::Result<Self> {
        Self::with(passed_sockets()?, settings, name)
    }

    /// Takes the sockets that the previous binary handed over, and binds the other sockets of the
    /// settings.
    pub(in crate::host) fn take_over(
        state: Vec<ListenerState>,
        settings: &[Listen],
        name: &str,
    ) -> io::Result<Self> {
        let held = state.into_iter().map(|one| {
            let lost = || io::Error::other(format!("the socket {} was not left open", one.name));
            Ok(Held {
                socket: exec::adopt(one.socket).ok_or_else(lost)?,
                name: one.name,
                file: one.file,
                is_passed: one.is_passed,
            })
        });
        Self::with(held.collect::<io::Result<_>>()?, settings, name)
    }

    /// The state that the new binary needs.
    pub(in crate::host) fn hand_over(&self) -> Vec<ListenerState> {
        let state = |one: &Held| ListenerState {
            socket: one.socket.as_raw_fd(),
            name: one.name.clone(),
            file: one.file.clone(),
            is_passed: one.is_passed,
        };
        self.held.iter().map(state).collect()
    }

    /// Binds the sockets of the settings that are not among `held`.
    fn with(mut held: Vec<Held>, settings: &[Listen], name: &str) -> io::Result<Self> {
        for setting in settings {
            let addresses = addresses(setting)?;
            if held.iter().any(|one| one.is_at(setting, &addresses)) {
                continue;
            }
            let (socket, file) = match setting {
                Listen::Tcp(_) => (TcpListener::bind(&*addresses).map(OwnedFd::from), None),
                Listen::Unix(path) => match bind(path) {
                    Ok((socket, file)) => (Ok(socket), Some((path.clone(), file))),
                    Err(error) => (Err(error), None),
                },
            };
            let socket = socket.map_err(|error| named_error(setting, &error))?;
            // The queue gets the length that `net.core.somaxconn` allows; `std` asks for 128.
            listen(&socket, Backlog::MAXALLOWABLE)?;
            held.push(Held {
                socket,
                name: name.to_owned(),
                file,
                is_passed: false,
            });
        }
        for one in &held {
            one.send_at_once();
        }
        Ok(Self { held })
    }

    /// The environment variables that pass the sockets to the command. [`Passing`] adds
    /// `LISTEN_PID`.
    pub(in crate::host) fn environment(&self, argv: &[OsString]) -> Vec<(&'static str, String)> {
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
        environment.extend(variable.map(|name| (name, FIRST_FD.to_string())));
        environment
    }

    /// Copies, by inode, of the sockets that only we have bound. They end when we do.
    pub(in crate::host) fn bound(&self) -> BTreeMap<u64, OwnedFd> {
        let bound = self.held.iter().filter(|one| !one.is_passed);
        bound
            .filter_map(|one| {
                Some((
                    fstat(&one.socket).ok()?.st_ino,
                    one.socket.try_clone().ok()?,
                ))
            })
            .collect()
    }

    /// Copies for a keeper. They stay open across exec, so drop them once the keeper has been
    /// started.
    pub(in crate::host) fn lend(&self) -> io::Result<Vec<OwnedFd>> {
        let lend = |one: &Held| self.copy_above(one.socket.as_fd());
        self.held.iter().map(lend).collect()
    }

    /// A copy of any descriptor for a keeper, with a number above those of the sockets.
    pub(in crate::host) fn copy_above(&self, descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let count = RawFd::try_from(self.held.len()).map_err(io::Error::other)?;
        let copy = fcntl(
            descriptor,
            FcntlArg::F_DUPFD(FIRST_FD.saturating_add(count)),
        )?;
        // SAFETY: it was made just now, and has no other owner.
        Ok(unsafe { OwnedFd::from_raw_fd(copy) })
    }
}

impl Held {
    /// Whether it listens at this address. All of IPv6 includes all of IPv4 (ipv6(7)).
    fn is_at(&self, setting: &Listen, addresses: &[SocketAddr]) -> bool {
        let Ok(own) = getsockname::<SockaddrStorage>(self.socket.as_raw_fd()) else {
            return false;
        };
        if let Listen::Unix(path) = setting {
            return own.as_unix_addr().and_then(|own| own.path()) == Some(path);
        }
        let Some(own) = ip_address(&own) else {
            return false;
        };
        let is_all = own.ip().is_unspecified() && own.is_ipv6();
        addresses.iter().any(|address| {
            *address == own
                || (is_all && address.ip().is_unspecified() && address.port() == own.port())
        })
    }

    /// Disables Nagle's algorithm, so that no small response waits for the acknowledgement of the
    /// one before. Connections inherit this. A server that gets its socket as a descriptor may not
    /// set it, because it may not know that the socket is TCP.
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

/// The sockets that our service manager has opened for us.
fn passed_sockets() -> io::Result<Vec<Held>> {
    let is_ours = env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let count = env::var("LISTEN_FDS").ok().filter(|_| is_ours);
    let count = count.and_then(|count| count.parse::<usize>().ok());
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut held = Vec::new();
    for number in (FIRST_FD..).take(count.unwrap_or(0).min(PASSED_MAX)) {
        // SAFETY: this only reads its flags, and an error shows that it is not open.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        if flags < 0 {
            let text = format!("LISTEN_FDS has a descriptor {number} that is not open");
            return Err(io::Error::other(text));
        }
        // SAFETY: LISTEN_PID says that it is open and ours alone. This function is called once.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        held.push(Held {
            socket,
            name: names.next().filter(|name| !name.is_empty()).map_or_else(
                // The name that sd_listen_fds_with_names(3) uses.
                || "unknown".to_owned(),
                str::to_owned,
            ),
            file: None,
            is_passed: true,
        });
    }
    Ok(held)
}

fn addresses(setting: &Listen) -> io::Result<Vec<SocketAddr>> {
    match setting {
        Listen::Unix(_) => Ok(Vec::new()),
        Listen::Tcp(address) => match address.to_socket_addrs() {
            Ok(addresses) => Ok(addresses.collect()),
            Err(error) => Err(named_error(setting, &error)),
        },
    }
}

fn named_error(setting: &Listen, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("listen on {setting}: {error}"))
}

fn ip_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    match address.family()? {
        AddressFamily::Inet => Some(SocketAddr::V4((*address.as_sockaddr_in()?).into())),
        AddressFamily::Inet6 => Some(SocketAddr::V6((*address.as_sockaddr_in6()?).into())),
        _ => None,
    }
}

/// Binds a path that is free, or whose socket file has no listener any more.
fn bind(path: &Path) -> io::Result<(OwnedFd, u64)> {
    if let Ok(found) = path.symlink_metadata() {
        if !found.file_type().is_socket() {
            let text = "a file that is not a socket exists there";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        // A datagram socket never connects to a stream socket. The connection is refused only if no
        // process has the found socket open (unix(7), connect(2)).
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

/// The sockets in the keeper, at their final numbers. They close at every exec except the
/// command's.
#[derive(Debug, Default)]
pub(in crate::host) struct Placed {
    sockets: Vec<OwnedFd>,
}

impl Placed {
    /// Moves the sockets from the supervisor to the numbers that the command expects.
    pub(in crate::host) fn move_in(lent: &[RawFd]) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for (place, number) in (FIRST_FD..).zip(lent) {
            // SAFETY: the supervisor has opened it for this process only, and it is closed after
            // the copy.
            let socket = unsafe { OwnedFd::from_raw_fd(*number) };
            // SAFETY: nothing in this process uses this number: the descriptors from the supervisor
            // are above it, and this process has opened none yet.
            sockets.push(unsafe { dup3_raw(&socket, place, OFlag::O_CLOEXEC)? });
        }
        Ok(Self { sockets })
    }

    /// Prepares everything for executing the command with the sockets, before the fork. `None`:
    /// there are no sockets.
    pub(in crate::host) fn passing(&self, program: &OsStr, argv: &[OsString]) -> Option<Passing> {
        let sockets: Vec<_> = self.sockets.iter().map(AsRawFd::as_raw_fd).collect();
        (!sockets.is_empty()).then(|| Passing::of(program, argv, sockets))
    }
}

/// An exec that passes the sockets on.
#[derive(Debug)]
pub(in crate::host) struct Passing {
    program: CString,
    argv: Vec<CString>,
    environ: Vec<CString>,
    sockets: Vec<RawFd>,
}

impl Passing {
    pub(in crate::host) fn of(program: &OsStr, argv: &[OsString], sockets: Vec<RawFd>) -> Self {
        let word = |text: &OsStr| CString::new(text.as_bytes()).unwrap_or_default();
        let environ = env::vars_os().filter(|(name, _)| name != "LISTEN_PID");
        let environ = environ.map(|(name, value)| {
            let mut text = name;
            text.push("=");
            text.push(value);
            word(&text)
        });
        Self {
            program: word(program),
            argv: argv.iter().map(|text| word(text)).collect(),
            environ: environ.collect(),
            sockets,
        }
    }

    /// Executes the command; runs in the command's own process. `LISTEN_PID` is known only now, and
    /// `std` would replace the environment after our last change.
    pub(in crate::host) fn execute(&mut self) -> io::Result<()> {
        for socket in &self.sockets {
            // SAFETY: this only changes a flag of a descriptor that the keeper had open when it
            // forked this process.
            if unsafe { libc::fcntl(*socket, libc::F_SETFD, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        if !self.sockets.is_empty() {
            let own = format!("LISTEN_PID={}", std::process::id());
            self.environ.push(CString::new(own)?);
        }
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
    fn configured_addresses_are_bound_even_where_a_stale_socket_file_exists() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("http");
        drop(UnixListener::bind(&path).unwrap());
        let settings = [
            Listen::Tcp("127.0.0.1:0".into()),
            Listen::Unix(path.clone()),
        ];
        let held = Listeners::take(&settings, "shop").unwrap();
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
        let second = Listeners::take(&settings[1..], "shop").unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse, "{second}");
        drop(held);
        assert!(!path.exists());
        std::fs::write(&path, "").unwrap();
        assert!(Listeners::take(&settings[1..], "shop").is_err());
        assert!(path.exists());
    }

    #[test]
    fn accepted_connections_inherit_tcp_nodelay() {
        let settings = [Listen::Tcp("127.0.0.1:0".into())];
        let held = Listeners::take(&settings, "shop").unwrap();
        let listener = TcpListener::from(held.held[0].socket.try_clone().unwrap());
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(listener.accept().unwrap().0.nodelay().unwrap());
    }

    #[test]
    fn a_socket_file_that_was_left_closed_does_not_prevent_a_start() {
        let folder = tempfile::tempdir().unwrap();
        set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let path = folder.path().join("http");
        let bound = std::thread::spawn(move || {
            // SAFETY: the bare system call changes this thread only, which ends here. Root may
            // connect to a file of any mode. Without root the call fails, and the test is as good.
            unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
            drop(UnixListener::bind(&path).unwrap());
            set_permissions(&path, Permissions::from_mode(0o0)).unwrap();
            bind(&path).map(|_| ())
        });
        bound.join().unwrap().unwrap();
    }

    #[test]
    fn an_address_whose_socket_was_passed_is_not_bound() {
        let is_at = |listener: OwnedFd, setting: Listen| {
            let held = Held {
                socket: listener,
                name: String::new(),
                file: None,
                is_passed: false,
            };
            held.is_at(&setting, &addresses(&setting).unwrap())
        };
        let tcp = |address: &str| TcpListener::bind(address).unwrap();
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let one = tcp("127.0.0.1:0");
        let setting = Listen::Tcp(format!("127.0.0.1:{}", port(&one)));
        assert!(is_at(one.try_clone().unwrap().into(), setting));
        let setting = Listen::Tcp(format!("0.0.0.0:{}", port(&one)));
        assert!(!is_at(one.into(), setting));
        if let Ok(all) = TcpListener::bind("[::]:0") {
            let setting = Listen::Tcp(format!("0.0.0.0:{}", port(&all)));
            assert!(is_at(all.into(), setting));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("http");
        let unix = UnixListener::bind(&path).unwrap();
        assert!(is_at(unix.into(), Listen::Unix(path)));
    }
}
