//! The client: finds the socket of a service and sends requests to it.

use std::{
    collections::BTreeMap,
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header::HOST,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};

pub use super::listener::is_live;

/// Time limit of a request that changes nothing.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Time limit of a change. A stop is the longest, with its grace period.
const CHANGE_MAX: Duration = Duration::from_secs(3600);
/// Time limit between two messages to a follower, which come at least every 15 seconds.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Maximum bytes of an answer. Events are the longest: up to 100,000 are kept.
const ANSWER_BYTES: usize = 64 << 20;
/// Maximum bytes of one event of a stream.
const EVENT_BYTES: usize = 1 << 20;
/// Maximum bytes of the head of an answer.
const HEAD_BYTES: usize = 16 << 10;

/// Why no service could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// No service is running.
    #[error("no service is running (looked in {})", directory.display())]
    None {
        /// The directory of the sockets.
        directory: PathBuf,
    },
    /// Several services are running.
    #[error("several services are running: {}; choose one with --name", names.join(", "))]
    Several {
        /// Their names, sorted.
        names: Vec<String>,
    },
    /// No service has this name.
    #[error(
        "no service `{name}` is running (looked in {}){}",
        directory.display(),
        list_running(running)
    )]
    NoSuch {
        /// The requested name.
        name: String,
        /// The directory of the sockets.
        directory: PathBuf,
        /// The names of services that are running, sorted.
        running: Vec<String>,
    },
    /// The directory cannot be read.
    #[error("list {}: {source}", directory.display())]
    Unreadable {
        /// The directory of the sockets.
        directory: PathBuf,
        /// The error.
        source: io::Error,
    },
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket cannot be connected to.
    #[error("connect to {}: {source}", socket.display())]
    Connect {
        /// The service's socket.
        socket: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The connection broke.
    #[error("ask {}: {source}", socket.display())]
    Broken {
        /// The service's socket.
        socket: PathBuf,
        /// The error.
        source: hyper::Error,
    },
    /// The supervisor does not answer.
    #[error("ask {}: no answer within {}s", socket.display(), wait.as_secs())]
    Timeout {
        /// The service's socket.
        socket: PathBuf,
        /// The time limit.
        wait: Duration,
    },
    /// The answer exceeds its limit.
    #[error(
        "ask {}: its answer is longer than {}M, so it is not from a supervisor",
        socket.display(),
        max >> 20
    )]
    AnswerTooLong {
        /// The service's socket.
        socket: PathBuf,
        /// The limit in bytes.
        max: usize,
    },
    /// The path is not valid in a request.
    #[error("ask for {path}: {source}")]
    InvalidRequest {
        /// The path.
        path: String,
        /// The error.
        source: hyper::http::Error,
    },
    /// The server does not send events, for a reason.
    #[error("follow: {status}: {body}")]
    Refused {
        /// The status.
        status: u16,
        /// The body of the response.
        body: String,
    },
}

/// One server-sent event.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// The event's id. A client that reconnects continues after it.
    pub id: Option<u64>,
    /// Its kind.
    pub event: String,
    /// Its document.
    pub data: String,
}

/// A connection. It carries one request: the server closes it after its answer.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects to the service at `socket`.
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(socket).await;
        let stream = stream.map_err(|source| ClientError::Connect {
            socket: socket.to_owned(),
            source,
        })?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEAD_BYTES);
        let shaken = builder.handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|source| ClientError::Broken {
            socket: socket.to_owned(),
            source,
        })?;
        // This task ends with the connection. The caller that waits for the answer gets its errors.
        tokio::spawn(connection);
        Ok(Self {
            socket: socket.to_owned(),
            sender,
        })
    }

    /// Sends a request that changes nothing. Returns the HTTP status and the body.
    pub async fn get(self, path: &str) -> Result<(u16, String), ClientError> {
        let late = self.timeout(ANSWER_MAX);
        let answer = timeout(ANSWER_MAX, self.ask(Method::GET, path, ""));
        answer.await.unwrap_or(Err(late))
    }

    /// Requests a change and waits until it is done or refused, which can take minutes.
    pub async fn post(self, path: &str, body: &str) -> Result<(u16, String), ClientError> {
        let late = self.timeout(CHANGE_MAX);
        let answer = timeout(CHANGE_MAX, self.ask(Method::POST, path, body));
        answer.await.unwrap_or(Err(late))
    }

    /// Calls `each` with each event of a stream until it breaks or the service ends.
    pub async fn follow(
        mut self,
        path: &str,
        mut each: impl FnMut(Message) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let response = timeout(ANSWER_MAX, self.send(Method::GET, path, "")).await;
        let response = response.unwrap_or_else(|_| Err(self.timeout(ANSWER_MAX)))?;
        if response.status() != StatusCode::OK {
            let status = response.status().as_u16();
            let body = timeout(ANSWER_MAX, self.read_body(response)).await;
            let body = body.unwrap_or_else(|_| Err(self.timeout(ANSWER_MAX)))?;
            return Err(ClientError::Refused { status, body });
        }
        let mut body = response.into_body();
        let mut parser = EventParser::default();
        loop {
            let frame = timeout(SILENCE_MAX, body.frame()).await;
            let Some(frame) = frame.map_err(|_| self.timeout(SILENCE_MAX))? else {
                return Ok(());
            };
            let frame = frame.map_err(|source| self.broken(source))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            for message in parser.parse(&data) {
                if each(message).is_break() {
                    return Ok(());
                }
            }
            if parser.unfinished_bytes() > EVENT_BYTES {
                return Err(self.too_long(EVENT_BYTES));
            }
        }
    }

    async fn ask(
        mut self,
        method: Method,
        path: &str,
        body: &str,
    ) -> Result<(u16, String), ClientError> {
        let response = self.send(method, path, body).await?;
        let status = response.status().as_u16();
        Ok((status, self.read_body(response).await?))
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: &str,
    ) -> Result<Response<Incoming>, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "supervise");
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes())));
        let request = request.map_err(|source| ClientError::InvalidRequest {
            path: path.to_owned(),
            source,
        })?;
        let response = self.sender.send_request(request).await;
        response.map_err(|source| self.broken(source))
    }

    async fn read_body(&self, response: Response<Incoming>) -> Result<String, ClientError> {
        let mut body = response.into_body();
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|source| self.broken(source))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if text.len() + data.len() > ANSWER_BYTES {
                return Err(self.too_long(ANSWER_BYTES));
            }
            text.extend_from_slice(&data);
        }
        Ok(match String::from_utf8(text) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })
    }

    fn timeout(&self, wait: Duration) -> ClientError {
        let socket = self.socket.clone();
        ClientError::Timeout { socket, wait }
    }

    fn too_long(&self, max: usize) -> ClientError {
        let socket = self.socket.clone();
        ClientError::AnswerTooLong { socket, max }
    }

    fn broken(&self, source: hyper::Error) -> ClientError {
        ClientError::Broken {
            socket: self.socket.clone(),
            source,
        }
    }
}

/// Parses a stream of events (HTML, "Server-sent events": interpreting an event stream).
#[derive(Debug, Default)]
struct EventParser {
    unparsed: Vec<u8>,
    message: Message,
}

impl EventParser {
    /// The number of bytes of an event that is not complete.
    const fn unfinished_bytes(&self) -> usize {
        self.unparsed.len() + self.message.event.len() + self.message.data.len()
    }

    /// Takes received bytes. Returns the events that are complete now.
    fn parse(&mut self, data: &[u8]) -> Vec<Message> {
        self.unparsed.extend_from_slice(data);
        let mut whole = Vec::new();
        while let Some(end) = self.unparsed.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unparsed.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            match line.trim_end().split_once(": ") {
                Some(("id", id)) => self.message.id = id.parse().ok(),
                Some(("event", event)) => event.clone_into(&mut self.message.event),
                Some(("data", data)) => data.clone_into(&mut self.message.data),
                Some(_) => {}
                None if self.message.data.is_empty() => {}
                None => whole.push(std::mem::take(&mut self.message)),
            }
        }
        whole
    }
}

/// The socket of the service `name` in `directory`; without a name, of the only service.
pub fn find(directory: &Path, name: Option<&str>) -> Result<PathBuf, FindError> {
    let mut running = running(directory)?;
    match name {
        Some(name) => match running.remove(name) {
            Some(socket) => Ok(socket),
            None => Err(FindError::NoSuch {
                name: name.to_owned(),
                directory: directory.to_owned(),
                running: running.into_keys().collect(),
            }),
        },
        None if running.len() > 1 => Err(FindError::Several {
            names: running.into_keys().collect(),
        }),
        None => running
            .pop_first()
            .map(|(_, socket)| socket)
            .ok_or(FindError::None {
                directory: directory.to_owned(),
            }),
    }
}

/// Services by name. Their sockets are in the directory itself or, for services of several users,
/// in a directory within it that has the service's name (`RuntimeDirectory=supervise/%i`).
fn running(directory: &Path) -> Result<BTreeMap<String, PathBuf>, FindError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(source) => {
            return Err(FindError::Unreadable {
                directory: directory.to_owned(),
                source,
            });
        }
    };
    let service = |path: PathBuf| {
        let file = path.file_name()?.to_str()?;
        let (name, socket) = match file.strip_suffix(".sock") {
            Some(name) => (name.to_owned(), path),
            None => (file.to_owned(), path.join(format!("{file}.sock"))),
        };
        (socket.exists() && is_live(&socket)).then_some((name, socket))
    };
    Ok(entries
        .filter_map(|entry| service(entry.ok()?.path()))
        .collect())
}

/// The end of an error message: the services that run.
fn list_running(running: &[String]) -> String {
    if running.is_empty() {
        return String::new();
    }
    format!("; running: {}", running.join(", "))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_name_is_needed_if_several_services_run() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path();
        let bind = |name: &str| UnixListener::bind(directory.join(name)).unwrap();
        let error = find(directory, None).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("no service is running (looked in {})", directory.display())
        );

        let _shop = bind("shop.sock");
        drop(bind("dead.sock"));
        std::fs::write(directory.join("shop.lock"), "").unwrap();
        assert_eq!(find(directory, None).unwrap(), directory.join("shop.sock"));

        std::fs::create_dir(directory.join("etl")).unwrap();
        let _etl = bind("etl/etl.sock");
        let error = find(directory, None).unwrap_err().to_string();
        assert_eq!(
            error,
            "several services are running: etl, shop; choose one with --name"
        );
        assert_eq!(
            find(directory, Some("etl")).unwrap(),
            directory.join("etl/etl.sock")
        );
        let error = find(directory, Some("dead")).unwrap_err().to_string();
        assert!(error.ends_with("; running: etl, shop"), "{error}");
        assert!(find(&directory.join("missing"), Some("x")).is_err());
    }

    #[test]
    fn a_stream_of_events_is_parsed_in_pieces_of_any_size() {
        let stream =
            b":\n\nid: 3\nevent: due\ndata: {\"a\": \"b: c\"}\n\nevent: missed\ndata: 1\n\n";
        let expected = [
            Message {
                id: Some(3),
                event: "due".to_owned(),
                data: "{\"a\": \"b: c\"}".to_owned(),
            },
            Message {
                id: None,
                event: "missed".to_owned(),
                data: "1".to_owned(),
            },
        ];
        for size in 1..stream.len() {
            let mut parser = EventParser::default();
            let messages: Vec<_> = stream
                .chunks(size)
                .flat_map(|piece| parser.parse(piece))
                .collect();
            assert_eq!(messages, expected, "in pieces of {size}");
        }
    }
}
