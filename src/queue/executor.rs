//! The socket of a `supervise.Executor`: a source of tasks and a sink of their outcomes.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream as Blocking,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::{Buf as _, BytesMut};
use nix::sys::socket::{setsockopt, sockopt::SndBuf};
use tokio::net::UnixStream;

use super::{Detail, Failure, Given, Outcome, Sink, Source, Task, Verdict};
use crate::{
    protocol::{
        document::{self, Lost},
        frame::{self, ORDER_HEAD, Order, OrderKind, Reply, ToClient},
    },
    units::Bytes,
};

/// Maximum bytes of one read.
const CHUNK: usize = 256 << 10;
/// The size of the socket's send buffer.
const BUFFER: usize = 1 << 20;
/// If more bytes than this are unsent, no new tasks are taken.
const UNSENT_MAX: usize = 64 << 20;

/// Reads the setup, the first frame of a client.
///
/// # Errors
/// The client sent something else or nothing, or it has another version of the protocol. In that
/// case the client receives the error.
pub fn read_setup(client: &mut Blocking) -> io::Result<Vec<u8>> {
    let mut head = [0; ORDER_HEAD];
    client.read_exact(&mut head)?;
    let (kind, seq, length) = Order::read_head(&head).map_err(|_| malformed())?;
    if kind != OrderKind::Setup {
        return Err(malformed());
    }
    if let Err(why) = frame::check_version(seq) {
        let refusal = reply(ToClient::Broken, &document::error("RuntimeError", &why));
        client.write_all(&refusal)?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut body = vec![0; length];
    client.read_exact(&mut body)?;
    Ok(body)
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the executor sent a malformed frame",
    )
}

/// A frame that does not belong to a task.
fn reply(kind: ToClient, body: &[u8]) -> Vec<u8> {
    let reply = Reply {
        kind,
        seq: 0,
        micros: 0,
        peak_kib: 0,
        body,
    };
    [&reply.head()[..], body].concat()
}

/// Opens the connection to a client.
///
/// # Errors
/// The socket cannot be registered with the loop.
pub fn open(client: Blocking) -> io::Result<(Tasks, Answers)> {
    client.set_nonblocking(true)?;
    // So a large outcome is sent in one write. If the kernel does not allow that, in several.
    let _ = setsockopt(&client, SndBuf, &BUFFER);
    let stream = Rc::new(UnixStream::from_std(client)?);
    let tasks = Tasks {
        stream: Rc::clone(&stream),
        ended: false,
        received: BytesMut::new(),
        chunk: vec![0; CHUNK],
    };
    let answers = Answers {
        stream,
        unsent: BytesMut::new(),
        credit: 0,
        broken: false,
    };
    Ok((tasks, answers))
}

/// The tasks of the client.
#[derive(Debug)]
pub struct Tasks {
    stream: Rc<UnixStream>,
    /// The client has sent QUIT: there are no more tasks.
    ended: bool,
    /// Bytes that were received and are not parsed yet.
    received: BytesMut,
    /// The buffer of one read.
    chunk: Vec<u8>,
}

impl Tasks {
    /// Reads all data that has arrived, and notices if the client has gone. The credit of the
    /// client limits the amount of data.
    fn fill(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Poll::Ready(ready) = self.stream.poll_read_ready(cx) {
            ready?;
            match self.stream.try_read(&mut self.chunk) {
                Ok(0) => return Err(client_gone()),
                Ok(length) => {
                    let new = self.chunk.get(..length).unwrap_or_default();
                    self.received.extend_from_slice(new);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(client_gone());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes up to `at_most` tasks from the received bytes. Returns their number.
    fn take_tasks(&mut self, at_most: usize, into: &mut Vec<Given>) -> io::Result<usize> {
        let mut at = 0;
        let mut count = 0;
        while count < at_most {
            let rest = self.received.get(at..).unwrap_or_default();
            let Some((order, length)) = Order::read(rest).map_err(|_| malformed())? else {
                break;
            };
            match order.kind {
                OrderKind::Task => {}
                OrderKind::Quit => {
                    self.ended = true;
                    break;
                }
                OrderKind::Setup | OrderKind::Report => return Err(malformed()),
            }
            into.push(Given::Task(Task {
                seq: order.seq,
                id: None,
                key: None,
                body: order.body.into(),
            }));
            at += length;
            count += 1;
        }
        self.received.advance(at);
        Ok(count)
    }
}

impl Source for Tasks {
    fn poll_tasks(
        &mut self,
        cx: &mut Context<'_>,
        at_most: usize,
        into: &mut Vec<Given>,
    ) -> Poll<io::Result<bool>> {
        self.fill(cx)?;
        let count = self.take_tasks(at_most, into)?;
        if self.ended || count > 0 {
            Poll::Ready(Ok(!self.ended))
        } else {
            Poll::Pending
        }
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match self.fill(cx) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(error),
        }
    }
}

/// The client has exited, or has closed the connection to stop the pool. No outcome is needed.
fn client_gone() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

/// The outcomes for the client.
#[derive(Debug)]
pub struct Answers {
    stream: Rc<UnixStream>,
    unsent: BytesMut,
    /// The credit that the client has.
    credit: usize,
    /// A write has failed: the client has gone.
    broken: bool,
}

impl Answers {
    /// Queues a frame, which [`Self::write_unsent`] sends.
    fn queue(&mut self, kind: ToClient, figures: (u64, u64, u64), body: &[u8]) {
        let (seq, micros, peak_kib) = figures;
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let reply = Reply {
            kind,
            seq,
            micros: small(micros),
            peak_kib: small(peak_kib),
            body,
        };
        self.unsent.extend_from_slice(&reply.head());
        self.unsent.extend_from_slice(body);
    }

    /// Writes as much as the socket takes now.
    fn write_unsent(&mut self) {
        while !self.unsent.is_empty() {
            match self.stream.try_write(&self.unsent) {
                Ok(length) => self.unsent.advance(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.broken = true;
                    break;
                }
            }
        }
    }

    /// Ready when at most `limit` bytes are unsent.
    fn poll_unsent_below(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<io::Result<()>> {
        loop {
            self.write_unsent();
            if self.broken {
                return Poll::Ready(Err(client_gone()));
            }
            if self.unsent.is_empty() {
                return Poll::Ready(Ok(()));
            }
            // The rest is sent when the client has read.
            if self.stream.poll_write_ready(cx)?.is_pending() {
                return if self.unsent.len() <= limit {
                    Poll::Ready(Ok(()))
                } else {
                    Poll::Pending
                };
            }
        }
    }
}

impl Sink for Answers {
    fn put(&mut self, outcome: Outcome) {
        let peak = outcome.peak.map_or(0, |peak| peak.get() / 1024);
        let figures = (outcome.seq, outcome.micros, peak);
        match outcome.verdict {
            Verdict::Done(body) => self.queue(ToClient::Result, figures, &body),
            Verdict::Failed(Failure {
                cause,
                detail: Detail::Raised(body),
                ..
            }) => {
                let kind = if cause == "unserializable" {
                    ToClient::Unserializable
                } else {
                    ToClient::Raised
                };
                self.queue(kind, figures, &body);
            }
            Verdict::Failed(failure) => {
                let Detail::Message(message) = failure.detail else {
                    return;
                };
                let lost = Lost {
                    cause: failure.cause,
                    message,
                    attempts: failure.attempts,
                    peak: outcome.peak.map(Bytes::get),
                };
                self.queue(ToClient::Lost, figures, &lost.encode());
            }
        }
    }

    fn credit(&mut self, tasks: usize) {
        if tasks != self.credit {
            self.credit = tasks;
            self.queue(ToClient::Credit, (tasks as u64, 0, 0), &[]);
        }
    }

    fn give_up(&mut self, error: &[u8]) {
        self.queue(ToClient::Broken, (0, 0, 0), error);
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_unsent_below(cx, UNSENT_MAX)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_unsent_below(cx, 0)
    }

    fn flush(&mut self) {
        self.write_unsent();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: OrderKind, seq: u64, body: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        Order { kind, seq, body }.write(&mut frame);
        frame
    }

    #[test]
    fn a_client_with_another_protocol_version_is_refused_and_receives_the_reason() {
        let (mut client, mut pool) = Blocking::pair().unwrap();
        let setup = |version| frame(OrderKind::Setup, version, b"setup");
        client.write_all(&setup(frame::VERSION)).unwrap();
        assert_eq!(read_setup(&mut pool).unwrap(), b"setup");
        client.write_all(&setup(frame::VERSION + 1)).unwrap();
        let error = read_setup(&mut pool).unwrap_err().to_string();
        let expected = "the Python package speaks protocol 2, and this `supervise` protocol 1";
        assert!(error.starts_with(expected), "{error}");
        drop(pool);
        let mut received = Vec::new();
        // The pool has not read the data after the header, so the read may end with an error.
        let _ = client.read_to_end(&mut received);
        let received = String::from_utf8_lossy(&received).into_owned();
        assert!(received.contains(expected), "{received}");
    }

    /// Runs `test` with a client and the pool's side of its connection.
    fn with(test: impl AsyncFnOnce(Blocking, Tasks, Answers)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (client, pool) = Blocking::pair().unwrap();
            let (tasks, answers) = open(pool).unwrap();
            test(client, tasks, answers).await;
        });
    }

    async fn next(tasks: &mut Tasks, at_most: usize) -> io::Result<(bool, Vec<u64>)> {
        let mut into = Vec::new();
        let more = std::future::poll_fn(|cx| tasks.poll_tasks(cx, at_most, &mut into)).await?;
        Ok((more, into.iter().map(Given::seq).collect()))
    }

    #[test]
    fn a_task_that_arrives_in_parts_is_read_as_one() {
        with(async |mut client, mut tasks, _answers| {
            let all = [
                frame(OrderKind::Task, 1, b"one"),
                frame(OrderKind::Task, 2, b""),
                frame(OrderKind::Quit, 0, b""),
            ]
            .concat();
            client.write_all(&all[..20]).unwrap();
            assert_eq!(next(&mut tasks, 9).await.unwrap(), (true, vec![1]));
            client.write_all(&all[20..]).unwrap();
            assert_eq!(next(&mut tasks, 9).await.unwrap(), (false, vec![2]));
        });
    }

    #[test]
    fn at_most_the_requested_number_of_tasks_is_taken() {
        with(async |mut client, mut tasks, _answers| {
            let all: Vec<u8> = (1..=3)
                .flat_map(|seq| frame(OrderKind::Task, seq, b"x"))
                .collect();
            client.write_all(&all).unwrap();
            assert_eq!(next(&mut tasks, 2).await.unwrap(), (true, vec![1, 2]));
            assert_eq!(next(&mut tasks, 2).await.unwrap(), (true, vec![3]));
        });
    }

    #[test]
    fn a_client_that_exits_is_noticed_while_tasks_wait() {
        with(async |mut client, mut tasks, _answers| {
            client.write_all(&frame(OrderKind::Task, 1, b"x")).unwrap();
            drop(client);
            let error = std::future::poll_fn(|cx| tasks.poll_gone(cx)).await;
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        });
    }

    #[test]
    fn a_client_that_exits_after_quit_is_noticed() {
        with(async |mut client, mut tasks, _answers| {
            client.write_all(&frame(OrderKind::Quit, 0, b"")).unwrap();
            assert_eq!(next(&mut tasks, 9).await.unwrap(), (false, vec![]));
            drop(client);
            let error = std::future::poll_fn(|cx| tasks.poll_gone(cx)).await;
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        });
    }

    #[test]
    fn a_malformed_frame_is_an_error() {
        with(async |mut client, mut tasks, _answers| {
            let mut wrong = frame(OrderKind::Task, 1, b"x");
            wrong[4] = b'?';
            client.write_all(&wrong).unwrap();
            let error = next(&mut tasks, 9).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        });
    }
}
