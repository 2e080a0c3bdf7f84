//! Closing the sockets of a real server, and waiting until its queue is empty.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::{Child, ChildStdin, Command, Stdio},
};

use nix::poll::PollTimeout;

use super::*;

/// A server that listens on the socket that `make` makes, prints its address, and accepts one
/// connection for each line that it reads.
struct Server {
    child: Child,
    orders: ChildStdin,
    address: String,
}

impl Server {
    fn start(make: &str) -> Self {
        Self::with(make, Stdio::inherit())
    }

    /// Starts it with this standard error.
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
        let service = Service {
            keeper: std::process::id().try_into().unwrap(),
            top_pids: vec![pid],
            ..Service::default()
        };
        let (backlog, trouble) = Backlog::close(&Proc::default(), &service, none, now);
        assert!(trouble.failed.is_none(), "{trouble:?}");
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
fn a_closed_port_serves_waiting_connections_and_refuses_new_ones() {
    for (family, host) in [
        ("AF_INET", Ipv4Addr::LOCALHOST.into()),
        ("AF_INET6", Ipv6Addr::LOCALHOST.into()),
    ] {
        let host: IpAddr = host;
        if TcpListener::bind((host, 0)).is_err() {
            println!("skipped: this machine has no {host}");
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
    // A server that starts again may copy this mode to its next socket.
    drop(backlog.into_files());
    assert_ne!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0);
}

#[test]
fn a_socket_that_a_process_outside_has_open_stays_open() {
    // The process that has it open is not below our keeper, and we do not have it open.
    let mut server = Server::start(
        "s = socket.socket()\ns.bind(('127.0.0.1', 0))\nwhere = s.getsockname()[1]\n\
         import os\nr, w = os.pipe()\n\
         if not os.fork():\n  os.setsid()\n  if os.fork(): os._exit(0)\n  \
         os.close(w)\n  os.read(r, 1)\n  os._exit(0)\nos.wait()",
    );
    let address = (Ipv4Addr::LOCALHOST, server.address.parse::<u16>().unwrap());
    let backlog = server.close();
    let waits = TcpStream::connect(address).unwrap();
    server.accept();
    becomes_readable(&waits);
    assert!(backlog.is_empty(&Proc::default(), Timestamp::default()));
}

#[test]
fn a_socket_that_was_passed_to_us_stays_open() {
    // Like a socket of a service manager: it is open in this process, and not bound by it.
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
