//! The socket's place in the file system: one service for each name, and nobody else's way in.

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

/// So many clients may wait to be let in.
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
        /// Why not.
        source: io::Error,
    },
    /// The lock beside the socket cannot be had.
    #[error("lock: {source}; --socket or control.socket names another place")]
    Lock {
        /// Why not.
        source: io::Error,
    },
    /// Something that is not ours has the socket's path.
    #[error("bind {}: {what}; --socket or control.socket names another", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// The socket cannot be bound.
    #[error("bind {}: {source}; --socket or control.socket names another", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The token for the reading half cannot be used.
    #[error("control.token_file: {}: {why}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with the file, and what is required.
        why: String,
    },
    /// The port for the reading half cannot be had.
    #[error("listen on {address}: {source}; --metrics or control.metrics names another")]
    Metrics {
        /// The wished address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

/// The bound socket. Dropping it takes the socket away, then the lock.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) listener: UnixListener,
    socket: PathBuf,
    /// `None`: taken over from an earlier binary, and other users can change it.
    directory: Option<PrivateDir>,
    /// Held for as long as we live; the kernel gives it back however we end.
    lock: File,
}

impl Door {
    /// Binds `socket` for the service `name`, within a tokio runtime.
    pub(super) fn open(socket: &Path, name: &str) -> Result<Self, ControlError> {
        let made = PrivateDir::make(directory_of(socket), 0o700);
        let directory = made.map_err(|source| ControlError::Directory { source })?;
        let lock = lock(&directory, &file_name(&socket.with_extension("lock")), name)?;
        clear(&directory, socket)?;
        Self::at(socket, Some(directory), lock, bind(socket))
    }

    /// As it was held by the binary that this process was before.
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
        Self::at(socket, directory, lock.into(), listener)
    }

    fn at(
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

impl Drop for Door {
    fn drop(&mut self) {
        // Nobody is left to be told, and a socket that stays is replaced by the next one.
        if let Some(directory) = &self.directory {
            let _gone = directory.remove(&file_name(&self.socket));
        }
    }
}

/// Listens for the reading half. `kept` is the listener of the binary that this process was before;
/// another address may be wished for now.
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

/// Somebody listens at `path`. Never blocks: a datagram socket cannot be connected to a stream
/// socket, so the kernel refuses with ECONNREFUSED when nobody has it open, and otherwise with
/// EPROTOTYPE (unix(7), connect(2)).
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

/// The lock stays when we go: removing it would let two newcomers lock two different files.
fn lock(directory: &PrivateDir, file: &str, name: &str) -> Result<File, ControlError> {
    let fail = |source| ControlError::Lock { source };
    let opened = directory.file(file, Create::IfMissing, 0o600);
    let mut file = opened.map_err(fail)?;
    match try_lock(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // Without a pid the message is still right.
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

/// Removes what a supervisor left that could not clean up. We hold the lock, so it is not one of
/// ours that lives; a stranger's socket is left alone.
fn clear(directory: &PrivateDir, socket: &Path) -> Result<(), ControlError> {
    let taken = |what| ControlError::Taken {
        path: socket.to_owned(),
        what,
    };
    match directory.entry(&file_name(socket)) {
        Err(_) | Ok(None) => return Ok(()),
        Ok(Some(found)) if found.st_mode & libc::S_IFMT != libc::S_IFSOCK => {
            return Err(taken("a file that is no socket is there"));
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

/// Between bind(2) and chmod(2) the umask decides who may connect. Nobody can: a socket that does
/// not listen yet refuses everyone.
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
    fn the_socket_is_only_for_its_owner_and_goes_with_the_door() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("run/shop.sock");
        let runtime = runtime();
        let _inside = runtime.enter();
        let door = Door::open(&path, "shop").unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert!(is_live(&path));
        drop(door);
        assert!(!path.exists() && !is_live(&path));
    }

    #[test]
    fn a_second_service_of_one_name_leaves_the_first_alone() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("shop.sock");
        let runtime = runtime();
        let _inside = runtime.enter();
        let first = Door::open(&path, "shop").unwrap();
        let error = Door::open(&path, "shop").unwrap_err().to_string();
        let pid = std::process::id();
        let expected =
            format!("`shop` is already running (pid {pid}); give this one another --name");
        assert_eq!(error, expected);
        assert!(is_live(&path));
        drop(first);
        Door::open(&path, "shop").unwrap();
    }

    #[test]
    fn a_dead_ones_socket_is_replaced_and_a_strangers_is_not() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("shop.sock");
        let runtime = runtime();
        let _inside = runtime.enter();
        // Dropping std's listener closes it and leaves the path, as SIGKILL does.
        let stranger = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = Door::open(&path, "shop").unwrap_err().to_string();
        assert!(error.contains("another program listens there"), "{error}");
        drop(stranger);
        assert!(path.exists());
        drop(Door::open(&path, "shop").unwrap());

        std::fs::write(&path, "a file").unwrap();
        let error = Door::open(&path, "shop").unwrap_err().to_string();
        assert!(
            error.contains("no socket") && error.contains("--socket"),
            "{error}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
    }

    #[test]
    fn what_cannot_be_had_is_named_with_its_option() {
        let home = tempfile::tempdir().unwrap();
        let runtime = runtime();
        let _inside = runtime.enter();
        let file = home.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = Door::open(&file.join("shop.sock"), "shop")
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
    fn a_port_that_was_kept_keeps_who_waits_there_unless_another_one_is_wished_for() {
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
