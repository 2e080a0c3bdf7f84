//! A strict HTTP/1.1 client for one exchange at a time.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use super::clock;

/// Why a request counts as lost.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Failure {
    /// There was no listener.
    Refused,
    /// The connection could not be made for another reason.
    Unconnected(io::ErrorKind),
    /// A new connection was reset before any byte of the answer.
    FreshReset,
    /// A new connection was closed before any byte of the answer.
    FreshEof,
    /// A kept connection was reset before any byte, without a previous `Connection: close`.
    ReusedReset,
    /// A kept connection was closed before any byte, without a previous `Connection: close`.
    /// RFC 9110 §9.2.2 lets a client repeat an idempotent request then. Many libraries do not.
    ReusedEof,
    /// The connection ended within the head.
    MidHead,
    /// The connection ended within the body.
    ShortBody,
    /// The answer is not HTTP.
    BadHead,
    /// Another status than 200.
    BadStatus(u16),
    /// An unexpected body, or a longer one than announced.
    BadBody,
    /// No complete answer in time.
    Timeout,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Self::Refused => "connect:refused",
            Self::Unconnected(kind) => return write!(f, "connect:{kind:?}"),
            Self::FreshReset => "fresh:reset",
            Self::FreshEof => "fresh:eof",
            Self::ReusedReset => "reused:reset@0",
            Self::ReusedEof => "reused:eof@0",
            Self::MidHead => "mid:head",
            Self::ShortBody => "mid:short-body",
            Self::BadHead => "bad:head",
            Self::BadStatus(status) => return write!(f, "bad:status:{status}"),
            Self::BadBody => "bad:body",
            Self::Timeout => "timeout",
        };
        f.write_str(word)
    }
}

/// A connection to the service, made when it is needed.
#[derive(Debug)]
pub(crate) struct Connection {
    address: SocketAddr,
    timeout: Duration,
    stream: Option<TcpStream>,
    /// How many connections were attempted.
    pub made: u64,
}

impl Connection {
    /// A connection to `address`. Each exchange may take `timeout`.
    pub(crate) fn new(address: SocketAddr, timeout: Duration) -> Self {
        Self {
            address,
            timeout,
            stream: None,
            made: 0,
        }
    }

    /// Requests `path` and returns the body. Drops the connection if it failed, or if either side
    /// announced to close it.
    pub(crate) fn get(&mut self, path: &str, keep: bool) -> Result<Vec<u8>, Failure> {
        let until = clock::now() + self.timeout;
        let reused = self.stream.is_some();
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.connect()?,
        };
        let close = if keep { "" } else { "Connection: close\r\n" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{close}\r\n");
        stream
            .write_all(request.as_bytes())
            .map_err(|error| before_answer(reused, Some(&error)))?;
        let mut answer = Answer {
            stream: &mut stream,
            until,
            bytes: Vec::with_capacity(512),
        };
        let head = answer.head(reused)?;
        let body = answer.body(&head)?;
        if keep && !head.closes {
            self.stream = Some(stream);
        }
        Ok(body)
    }

    fn connect(&mut self) -> Result<TcpStream, Failure> {
        self.made += 1;
        let stream =
            TcpStream::connect_timeout(&self.address, self.timeout).map_err(|error| match error
                .kind()
            {
                io::ErrorKind::ConnectionRefused => Failure::Refused,
                io::ErrorKind::TimedOut => Failure::Timeout,
                kind => Failure::Unconnected(kind),
            })?;
        // Without this the second half of a request may wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

fn before_answer(reused: bool, error: Option<&io::Error>) -> Failure {
    match (reused, error) {
        (_, Some(error)) if is_timeout(error) => Failure::Timeout,
        (true, Some(_)) => Failure::ReusedReset,
        (true, None) => Failure::ReusedEof,
        (false, Some(_)) => Failure::FreshReset,
        (false, None) => Failure::FreshEof,
    }
}

/// A read timeout of a socket is reported as either kind (socket(7), `SO_RCVTIMEO`).
fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// What the head of the answer announces.
#[derive(Debug)]
struct Head {
    length: Length,
    closes: bool,
}

#[derive(Clone, Copy, Debug)]
enum Length {
    Known(usize),
    Chunked,
    UntilEof,
}

struct Answer<'a> {
    stream: &'a mut TcpStream,
    until: Instant,
    /// Received bytes that are not used yet.
    bytes: Vec<u8>,
}

impl Answer<'_> {
    fn head(&mut self, reused: bool) -> Result<Head, Failure> {
        let end = loop {
            if let Some(at) = find(&self.bytes, b"\r\n\r\n") {
                break at;
            }
            let is_first = self.bytes.is_empty();
            match self.more() {
                Ok(true) => {}
                Ok(false) if is_first => return Err(before_answer(reused, None)),
                Err(error) if is_first || is_timeout(&error) => {
                    return Err(before_answer(reused, Some(&error)));
                }
                Ok(false) | Err(_) => return Err(Failure::MidHead),
            }
        };
        let rest = self.bytes.split_off(end + 4);
        let head = std::mem::replace(&mut self.bytes, rest);
        read_head(&String::from_utf8_lossy(&head))
    }

    fn body(&mut self, head: &Head) -> Result<Vec<u8>, Failure> {
        let body = match head.length {
            Length::Known(length) => self.take(length)?,
            Length::Chunked => self.chunks()?,
            Length::UntilEof => {
                while self.more().map_err(short)? {}
                std::mem::take(&mut self.bytes)
            }
        };
        if self.bytes.is_empty() {
            Ok(body)
        } else {
            Err(Failure::BadBody)
        }
    }

    fn chunks(&mut self) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(|_| Failure::BadBody)?;
            body.extend(self.take(size)?);
            if !self.line()?.is_empty() {
                return Err(Failure::BadBody);
            }
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn line(&mut self) -> Result<String, Failure> {
        loop {
            if let Some(at) = find(&self.bytes, b"\r\n") {
                let rest = self.bytes.split_off(at + 2);
                let line = std::mem::replace(&mut self.bytes, rest);
                return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            self.need()?;
        }
    }

    fn take(&mut self, length: usize) -> Result<Vec<u8>, Failure> {
        while self.bytes.len() < length {
            self.need()?;
        }
        let rest = self.bytes.split_off(length);
        Ok(std::mem::replace(&mut self.bytes, rest))
    }

    fn need(&mut self) -> Result<(), Failure> {
        match self.more() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::ShortBody),
            Err(error) => Err(short(error)),
        }
    }

    /// Reads once. Returns false at the end of the connection.
    fn more(&mut self) -> io::Result<bool> {
        let left = self.until.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut buffer = [0; 8192];
        loop {
            match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(count) => {
                    self.bytes.extend_from_slice(&buffer[..count]);
                    return Ok(count > 0);
                }
            }
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is passed to map_err")]
fn short(error: io::Error) -> Failure {
    if is_timeout(&error) {
        Failure::Timeout
    } else {
        Failure::ShortBody
    }
}

fn read_head(head: &str) -> Result<Head, Failure> {
    let head = head.to_ascii_lowercase();
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let version = words.next().unwrap_or_default();
    if version != "http/1.1" && version != "http/1.0" {
        return Err(Failure::BadHead);
    }
    match words.next().and_then(|word| word.parse().ok()) {
        Some(200_u16) => {}
        Some(status) => return Err(Failure::BadStatus(status)),
        None => return Err(Failure::BadHead),
    }
    let mut length = Length::UntilEof;
    let mut closes = version == "http/1.0";
    for (key, value) in lines.filter_map(|line| line.split_once(':')) {
        match (key, value.trim()) {
            ("content-length", value) => {
                length = Length::Known(value.parse().map_err(|_| Failure::BadHead)?);
            }
            ("transfer-encoding", "chunked") => length = Length::Chunked,
            ("connection", "close") => closes = true,
            _ => {}
        }
    }
    // RFC 9112 §6.3: a body without a length ends with the connection.
    if matches!(length, Length::UntilEof) {
        closes = true;
    }
    Ok(Head { length, closes })
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}
