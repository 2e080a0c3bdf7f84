//! Probes a service, or one copy of a fleet, repeatedly, until it answers.

use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::eventfd::EventFd;

use crate::{
    host::{clock, listen::accepted, memory::procfs::Proc},
    supervisor::spec::ReadyWhen,
};

/// The pause after the first attempt. It doubles each time ...
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// ... up to this.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Time limit of one attempt.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);
/// How often the kernel is asked which process has accepted a connection.
const ACCEPT_POLL: Duration = Duration::from_millis(5);
/// The answer of a probe without a request.
const OK: u16 = 200;
/// RFC 9110, section 15.6: the server has failed ...
const SERVER_ERROR: u16 = 500;
/// ... and with this one of them only for a while.
const UNAVAILABLE: u16 = 503;

/// A thread that probes. It ends with the first answer, or when this is dropped.
#[derive(Debug)]
pub(super) struct Probe {
    given_up: Arc<AtomicBool>,
    /// The status of the answer. 0: there is none, or it was taken.
    answer: Arc<AtomicU16>,
}

impl Probe {
    /// Starts to probe the service, if readiness is detected by a probe. Wakes the loop at the
    /// answer.
    pub(super) fn of_service(when: &ReadyWhen, waker: Arc<EventFd>) -> Option<Self> {
        let (address, request) = target(when)?;
        let ask = move || {
            let status = answer(&address, request.as_deref(), |_| true);
            status.filter(|status| is_success(*status))
        };
        Some(Self::repeat(waker, ask))
    }

    /// Starts to probe a copy of a fleet. Any copy may accept a connection at a shared socket, so
    /// the request is sent only on a connection that this copy has accepted.
    pub(super) fn of_copy(when: &ReadyWhen, pid: i32, waker: Arc<EventFd>) -> Option<Self> {
        if let ReadyWhen::Delay(delay) = when {
            let until = clock::now().later(*delay);
            let is_over = move || (clock::now() >= until).then_some(OK);
            return Some(Self::repeat(waker, is_over));
        }
        let (address, request) = target(when)?;
        let proc = Proc::default();
        let ask = move || {
            let by_copy = |stream: &TcpStream| is_accepted_by(&proc, pid, stream);
            let status = answer(&address, request.as_deref(), by_copy)?;
            let is_final = is_success(status) || is_failure(status);
            is_final.then_some(status)
        };
        Some(Self::repeat(waker, ask))
    }

    /// Asks until there is an answer.
    fn repeat(waker: Arc<EventFd>, ask: impl Fn() -> Option<u16> + Send + 'static) -> Self {
        let probe = Self {
            given_up: Arc::default(),
            answer: Arc::default(),
        };
        let (given_up, answer) = (Arc::clone(&probe.given_up), Arc::clone(&probe.answer));
        let ask = move || {
            let mut pause = PAUSE_MIN;
            while !given_up.load(Ordering::Relaxed) {
                if let Some(status) = ask() {
                    answer.store(status, Ordering::Relaxed);
                    let _ = waker.write(1);
                    return;
                }
                thread::park_timeout(pause);
                pause = pause.saturating_mul(2).min(PAUSE_MAX);
            }
        };
        // Without a thread there is no answer, and the service counts as not ready.
        let _ = thread::Builder::new()
            .name("probe".to_owned())
            .stack_size(128 << 10)
            .spawn(ask);
        probe
    }

    /// The status of the answer, once.
    pub(super) fn take(&self) -> Option<u16> {
        let status = self.answer.swap(0, Ordering::Relaxed);
        (status > 0).then_some(status)
    }
}

/// Whether a service that answers with this status is ready.
pub(super) fn is_success(status: u16) -> bool {
    (100..400).contains(&status)
}

/// Whether a copy that answers with this status will not become ready.
fn is_failure(status: u16) -> bool {
    status >= SERVER_ERROR && status != UNAVAILABLE
}

/// Waits until the connection is accepted. Returns whether this process or a descendant of it has
/// accepted it.
fn is_accepted_by(proc: &Proc, pid: i32, stream: &TcpStream) -> bool {
    let (Ok(server), Ok(client)) = (stream.peer_addr(), stream.local_addr()) else {
        return false;
    };
    let until = clock::now().later(ATTEMPT_MAX);
    while clock::now() < until {
        if let Some(inode) = accepted(proc, pid, server, client) {
            let mut tree = vec![pid];
            tree.extend(proc.descendants(pid));
            let sockets = |pid| proc.sockets(pid).unwrap_or_default();
            let mut sockets = tree.into_iter().flat_map(sockets);
            return sockets.any(|(_, its)| its == inode);
        }
        thread::park_timeout(ACCEPT_POLL);
    }
    false
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

/// The `HOST:PORT` to connect to, and the request to send there.
fn target(when: &ReadyWhen) -> Option<(String, Option<String>)> {
    match when {
        ReadyWhen::Tcp(address) => Some((address.clone(), None)),
        ReadyWhen::Http(url) => {
            let rest = url.strip_prefix("http://").unwrap_or(url);
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let address = if host.contains(':') {
                host.to_owned()
            } else {
                format!("{host}:80")
            };
            let request =
                format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            Some((address, Some(request)))
        }
        ReadyWhen::Auto | ReadyWhen::Notify | ReadyWhen::Delay(_) => None,
    }
}

/// The status of the answer to the request. Without a request it is enough to connect. `None`:
/// there is no answer, or the connection is not the right one.
fn answer(
    address: &str,
    request: Option<&str>,
    is_right: impl Fn(&TcpStream) -> bool,
) -> Option<u16> {
    let address = address.to_socket_addrs().ok()?.next()?;
    let mut stream = TcpStream::connect_timeout(&address, ATTEMPT_MAX).ok()?;
    if !is_right(&stream) {
        return None;
    }
    let Some(request) = request else {
        return Some(OK);
    };
    let mut start = [0; 12];
    let asked = stream
        .set_read_timeout(Some(ATTEMPT_MAX))
        .and_then(|()| stream.write_all(request.as_bytes()))
        .and_then(|()| stream.read_exact(&mut start));
    asked.ok()?;
    // In `HTTP/1.1 200` the last three characters are the status.
    std::str::from_utf8(&start).ok()?.get(9..12)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{io::BufRead, net::TcpListener};

    use super::*;

    fn served(status: &str) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let reply = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            std::io::BufReader::new(&stream)
                .read_line(&mut line)
                .unwrap();
            stream.write_all(reply.as_bytes()).unwrap();
            line
        });
        let (to, request) = target(&ReadyWhen::Http(format!("http://{address}/up"))).unwrap();
        let answered = answer(&to, request.as_deref(), |_| true).is_some_and(is_success);
        assert_eq!(server.join().unwrap(), "GET /up HTTP/1.1\r\n");
        answered
    }

    #[test]
    fn a_status_below_400_is_an_answer() {
        assert!(served("200 OK"));
        assert!(served("302 Found"));
        assert!(!served("503 Service Unavailable"));
    }

    #[test]
    fn a_closed_port_is_not_an_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert_eq!(answer(&address, None, |_| true), Some(OK));
        drop(listener);
        assert_eq!(answer(&address, None, |_| true), None);
    }

    #[test]
    fn a_copy_that_answers_with_a_failure_will_not_become_ready() {
        for (status, ready, failed) in [
            (200, true, false),
            (302, true, false),
            (404, false, false),
            (500, false, true),
            (502, false, true),
            (UNAVAILABLE, false, false),
        ] {
            assert_eq!((is_success(status), is_failure(status)), (ready, failed));
        }
    }

    #[test]
    fn the_process_that_has_accepted_a_connection_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _accepted = listener.accept().unwrap();
        let (proc, own) = (Proc::default(), i32::try_from(std::process::id()).unwrap());
        assert!(is_accepted_by(&proc, own, &stream));
        let parent = proc.stat(own).unwrap().ppid;
        let holds_it = |pid| {
            let sockets = proc.sockets(pid).unwrap_or_default();
            let (server, client) = (stream.peer_addr().unwrap(), stream.local_addr().unwrap());
            let inode = accepted(&proc, own, server, client).unwrap();
            sockets.iter().any(|(_, its)| *its == inode)
        };
        assert!(holds_it(own) && !holds_it(parent));
    }
}
