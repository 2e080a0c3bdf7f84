//! The control socket's path and its lock: one service for each name, and no access for other
//! users.

use std::{
    fs::{File, Permissions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::{fs::PermissionsExt as _, net::UnixDatagram},
    },
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixSocket};

use crate::private_dir::{Create, PrivateDir, try_lock};

/// Maximum clients that wait to be accepted.
const BACKLOG: u32 = 128;

/// Why the control socket could not be opened. Nothing has been started then.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another supervisor has this name.
    #[error(
        "`{name}` is already running{}; give this one another --name",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    AlreadyRunning {
        /// The service's name.
        name: String,
        /// The other supervisor.
        pid: Option<u32>,
    },
    /// The socket's directory cannot be made, or other users can change it.
    #[error("control socket: {source}; --socket or control.socket names another directory")]
    Directory {
        /// The error.
        source: io::Error,
    },
    /// The lock beside the socket cannot be taken.
    #[error("lock: {source}; --socket or control.socket names another place")]
    Lock {
        /// The error.
        source: io::Error,
    },
    /// The socket's path is taken by something else.
    #[error("bind {}: {what}; --socket or control.socket names another", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
        /// The type of the entry at the path.
        what: &'static str,
    },
    /// The socket cannot be bound.
    #[error("bind {}: {source}; --socket or control.socket names another", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The token of the TCP port cannot be used.
    #[error("control.token_file: {}: {why}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// The problem of the file, and the requirement.
        why: String,
    },
    /// The TCP port cannot be opened.
    #[error("listen on {address}: {source}; --metrics or control.metrics names another")]
    Metrics {
        /// The configured address.
        address: SocketAddr,
        /// The error.
        source: io::Error,
    },
}

/// The bound socket. Dropping it removes the socket, then releases the lock.
#[derive(Debug)]
pub(super) struct ControlSocket {
    pub(super) listener: UnixListener,
    socket: PathBuf,
    /// `None` after an upgrade, if other users can change the directory.
    directory: Option<PrivateDir>,
    /// Held until this process ends; the kernel releases it in every case.
    lock: File,
}

impl ControlSocket {
    /// Binds `socket` for the service `name`, within a tokio runtime.
    pub(super) fn open(socket: &Path, name: &str) -> Result<Self, ControlError> {
        let made = PrivateDir::make(directory_of(socket), 0o700);
        let directory = made.map_err(|source| ControlError::Directory { source })?;
        let lock = lock(&directory, &file_name(&socket.with_extension("lock")), name)?;
        remove_stale_socket(&directory, socket)?;
        Self::assemble(socket, Some(directory), lock, bind(socket))
    }

    /// Takes the descriptors that the previous binary of this process handed over.
    pub(super) fn take_over(
        socket: &Path,
        lock: OwnedFd,
        listener: OwnedFd,
    ) -> Result<Self, ControlError> {
        let listener = std::os::unix::net::UnixListener::from(listener);
        let listener = listener
            .set_nonblocking(true)
            .and_then(|()| UnixListener::from_std(listener));
        let directory = PrivateDir::open(directory_of(socket)).ok();
        Self::assemble(socket, directory, lock.into(), listener)
    }

    fn assemble(
        socket: &Path,
        directory: Option<PrivateDir>,
        lock: File,
        listener: io::Result<UnixListener>,
    ) -> Result<Self, ControlError> {
        let listener = listener.map_err(|source| ControlError::Bind {
            path: socket.to_owned(),
            source,
        })?;
        Ok(Self {
            listener,
            socket: socket.to_owned(),
            directory,
            lock,
        })
    }

    /// The lock and the listener.
    pub(super) fn descriptors(&self) -> (RawFd, RawFd) {
        (self.lock.as_raw_fd(), self.listener.as_raw_fd())
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // After an error the socket stays, and the next start replaces it.
        if let Some(directory) = &self.directory {
            let _removed = directory.remove(&file_name(&self.socket));
        }
    }
}

/// Listens at the TCP port. `kept` is the listener from before an upgrade; it is used if the
/// configured address has not changed.
pub(super) fn listen(
    address: SocketAddr,
    kept: Option<OwnedFd>,
) -> Result<tokio::net::TcpListener, ControlError> {
    let kept = kept.map(TcpListener::from).filter(|listener| {
        let is_of =
            |it: SocketAddr| it.ip() == address.ip() && [it.port(), 0].contains(&address.port());
        listener.local_addr().is_ok_and(is_of)
    });
    let listener = kept.map_or_else(|| TcpListener::bind(address), Ok);
    let listener = listener.and_then(|listener| {
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    });
    listener.map_err(|source| ControlError::Metrics { address, source })
}

/// Whether a program listens at `path`. Never blocks: a datagram socket cannot be connected to a
/// stream socket, so the kernel refuses with ECONNREFUSED if no process has the socket open, and
/// otherwise with EPROTOTYPE (unix(7), connect(2)).
pub fn is_live(path: &Path) -> bool {
    match UnixDatagram::unbound().and_then(|socket| socket.connect(path)) {
        Ok(()) => true,
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
        ),
    }
}

fn directory_of(socket: &Path) -> &Path {
    let parent = socket.parent().filter(|path| !path.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The file stays when this process ends: if it were removed, two new processes could lock two
/// different files.
fn lock(directory: &PrivateDir, file: &str, name: &str) -> Result<File, ControlError> {
    let fail = |source| ControlError::Lock { source };
    let opened = directory.file(file, Create::IfMissing, 0o600);
    let mut file = opened.map_err(fail)?;
    match try_lock(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // The message is still correct without a pid.
            let _read = file.read_to_string(&mut text);
            return Err(ControlError::AlreadyRunning {
                name: name.to_owned(),
                pid: text.trim().parse().ok(),
            });
        }
        Err(TryLockError::Error(source)) => return Err(fail(source)),
    }
    (file.set_len(0))
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(fail)?;
    Ok(file)
}

/// Removes the socket of a supervisor that was killed. We hold the lock, so no other supervisor
/// uses it; the socket of another program is left alone.
fn remove_stale_socket(directory: &PrivateDir, socket: &Path) -> Result<(), ControlError> {
    let taken = |what| ControlError::Taken {
        path: socket.to_owned(),
        what,
    };
    match directory.entry(&file_name(socket)) {
        Err(_) | Ok(None) => return Ok(()),
        Ok(Some(found)) if found.st_mode & libc::S_IFMT != libc::S_IFSOCK => {
            return Err(taken("a file that is not a socket is there"));
        }
        Ok(Some(_)) if is_live(socket) => return Err(taken("another program listens there")),
        Ok(Some(_)) => {}
    }
    let removed = directory.remove(&file_name(socket));
    removed.map_err(|source| ControlError::Bind {
        path: socket.to_owned(),
        source,
    })
}

/// Binds the socket. Between bind(2) and chmod(2) the umask decides which users may connect, but a
/// socket that does not listen yet refuses every client.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }

    #[test]
    fn the_socket_has_mode_0600_and_is_removed_at_the_end() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("run/shop.sock");
        let runtime = runtime();
        let _inside = runtime.enter();
        let socket = ControlSocket::open(&path, "shop").unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert!(is_live(&path));
        drop(socket);
        assert!(!path.exists() && !is_live(&path));
    }

    #[test]
    fn a_second_service_of_the_same_name_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("shop.sock");
        let runtime = runtime();
        let _inside = runtime.enter();
        let first = ControlSocket::open(&path, "shop").unwrap();
        let error = ControlSocket::open(&path, "shop").unwrap_err().to_string();
        let pid = std::process::id();
        let expected =
            format!("`shop` is already running (pid {pid}); give this one another --name");
        assert_eq!(error, expected);
        assert!(is_live(&path));
        drop(first);
        ControlSocket::open(&path, "shop").unwrap();
    }

    #[test]
    fn the_socket_of_a_killed_supervisor_is_replaced_and_other_files_are_not() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("shop.sock");
        let runtime = runtime();
        let _inside = runtime.enter();
        // Dropping std's listener closes it and leaves the path, as SIGKILL does.
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = ControlSocket::open(&path, "shop").unwrap_err().to_string();
        assert!(error.contains("another program listens there"), "{error}");
        drop(other);
        assert!(path.exists());
        drop(ControlSocket::open(&path, "shop").unwrap());

        std::fs::write(&path, "a file").unwrap();
        let error = ControlSocket::open(&path, "shop").unwrap_err().to_string();
        assert!(
            error.contains("not a socket") && error.contains("--socket"),
            "{error}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
    }

    #[test]
    fn an_error_names_the_option_that_solves_it() {
        let home = tempfile::tempdir().unwrap();
        let runtime = runtime();
        let _inside = runtime.enter();
        let file = home.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = ControlSocket::open(&file.join("shop.sock"), "shop")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("control socket: ") && error.contains("--socket"),
            "{error}"
        );

        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = listen(taken.local_addr().unwrap(), None)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("listen on 127.0.0.1:") && error.contains("--metrics"),
            "{error}"
        );
    }

    #[test]
    fn an_upgrade_keeps_waiting_clients_unless_the_port_has_changed() {
        let runtime = runtime();
        let _inside = runtime.enter();
        let kept = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let waiting = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (
                listener.local_addr().unwrap(),
                OwnedFd::from(listener),
                waiting,
            )
        };
        let (address, listener, waiting) = kept();
        let same = listen(address, Some(listener)).unwrap();
        let (_, from) = same.into_std().unwrap().accept().unwrap();
        assert_eq!(from, waiting.local_addr().unwrap());

        let (address, listener, _waiting) = kept();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = free.local_addr().unwrap();
        drop(free);
        let moved = listen(other, Some(listener)).unwrap();
        assert_eq!(moved.local_addr().unwrap(), other);
        assert!(std::net::TcpStream::connect(address).is_err());
    }
}
