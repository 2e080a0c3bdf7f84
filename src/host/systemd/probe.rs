//! Probes a service repeatedly, until it answers.

use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::eventfd::EventFd;

use crate::supervisor::spec::ReadyWhen;

const PAUSE: Duration = Duration::from_millis(100);
/// Time limit of one attempt.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);

/// A thread that probes the service. It ends with the first answer, or when this is dropped.
#[derive(Debug)]
pub(super) struct Probe {
    given_up: Arc<AtomicBool>,
    answered: Arc<AtomicBool>,
}

impl Probe {
    /// Starts to probe, if readiness is detected by a probe. Wakes the loop at the answer.
    pub(super) fn start(when: &ReadyWhen, waker: Arc<EventFd>) -> Option<Self> {
        let (address, request) = target(when)?;
        let probe = Self {
            given_up: Arc::default(),
            answered: Arc::default(),
        };
        let (given_up, answered) = (Arc::clone(&probe.given_up), Arc::clone(&probe.answered));
        let ask = move || {
            while !given_up.load(Ordering::Relaxed) {
                if is_answered(&address, request.as_deref()) {
                    answered.store(true, Ordering::Relaxed);
                    let _ = waker.write(1);
                    return;
                }
                thread::park_timeout(PAUSE);
            }
        };
        // Without a thread there is no answer, and the service counts as not ready.
        let _ = thread::Builder::new()
            .name("probe".to_owned())
            .stack_size(128 << 10)
            .spawn(ask);
        Some(probe)
    }

    /// Whether a probe was answered. True once.
    pub(super) fn take(&self) -> bool {
        self.answered.swap(false, Ordering::Relaxed)
    }
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

/// Whether a connection to this address succeeds, and the request, if any, is answered with a
/// status below 400.
fn is_answered(address: &str, request: Option<&str>) -> bool {
    let Some(address) = address
        .to_socket_addrs()
        .ok()
        .and_then(|mut all| all.next())
    else {
        return false;
    };
    let Ok(mut stream) = TcpStream::connect_timeout(&address, ATTEMPT_MAX) else {
        return false;
    };
    let Some(request) = request else { return true };
    let mut start = [0; 12];
    let asked = stream
        .set_read_timeout(Some(ATTEMPT_MAX))
        .and_then(|()| stream.write_all(request.as_bytes()))
        .and_then(|()| stream.read_exact(&mut start));
    // In `HTTP/1.1 200` the last three characters are the status.
    let status = std::str::from_utf8(&start)
        .ok()
        .and_then(|line| line.get(9..12)?.parse().ok());
    asked.is_ok() && status.is_some_and(|status: u16| (100..400).contains(&status))
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
        let answered = is_answered(&to, request.as_deref());
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
        assert!(is_answered(&address, None));
        drop(listener);
        assert!(!is_answered(&address, None));
    }
}
