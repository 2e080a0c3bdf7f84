//! The socket of a `supervise.Executor`: tasks come in, what became of them goes out.

use std::{
    io::{self, Read as _},
    os::unix::net::UnixStream as Blocking,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::{Buf as _, BytesMut};
use nix::sys::socket::{setsockopt, sockopt::SndBuf};
use serde_json::json;
use tokio::net::UnixStream;

use super::{Detail, Failure, Given, Outcome, Sink, Source, Task, Verdict};

/// Length, kind, task.
const HEAD: usize = 13;
/// So much is read at a time.
const CHUNK: usize = 256 << 10;
/// So much may lie in the socket.
const BUFFER: usize = 1 << 20;
/// The client is behind when more than this waits for it.
const BEHIND: usize = 64 << 20;

/// Reads the setup, the first that a client says.
///
/// # Errors
/// The client said something else, or nothing.
pub fn read_setup(client: &mut Blocking) -> io::Result<Vec<u8>> {
    let mut head = [0; HEAD];
    client.read_exact(&mut head)?;
    let (length, kind, _) = parse(&head).ok_or_else(garbled)?;
    if kind != b'I' {
        return Err(garbled());
    }
    let mut body = vec![0; length];
    client.read_exact(&mut body)?;
    Ok(body)
}

fn garbled() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "what the executor says is no frame",
    )
}

fn parse(head: &[u8]) -> Option<(usize, u8, u64)> {
    let length = u32::from_le_bytes(head.get(..4)?.try_into().ok()?);
    let seq = u64::from_le_bytes(head.get(5..HEAD)?.try_into().ok()?);
    Some((usize::try_from(length).ok()?, *head.get(4)?, seq))
}

/// Both ends of the conversation.
///
/// # Errors
/// The socket cannot be waited for.
pub fn open(client: Blocking) -> io::Result<(Tasks, Answers)> {
    client.set_nonblocking(true)?;
    // A large answer goes at once; where the kernel allows less, in parts.
    let _ = setsockopt(&client, SndBuf, &BUFFER);
    let stream = Rc::new(UnixStream::from_std(client)?);
    let tasks = Tasks {
        stream: Rc::clone(&stream),
        ended: false,
        read: BytesMut::new(),
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

/// What the client wants done.
#[derive(Debug)]
pub struct Tasks {
    stream: Rc<UnixStream>,
    /// The client has said that no more comes.
    ended: bool,
    read: BytesMut,
    chunk: Vec<u8>,
}

impl Tasks {
    /// Reads all that is there. It is no more than the credit of the client, and its end is behind.
    fn fill(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Poll::Ready(ready) = self.stream.poll_read_ready(cx) {
            ready?;
            match self.stream.try_read(&mut self.chunk) {
                Ok(0) => return Err(gone()),
                Ok(length) => {
                    let new = self.chunk.get(..length).unwrap_or_default();
                    self.read.extend_from_slice(new);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(gone()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take(&mut self, at_most: usize, into: &mut Vec<Given>) -> io::Result<usize> {
        let mut at = 0;
        let mut count = 0;
        while count < at_most {
            let rest = self.read.get(at..).unwrap_or_default();
            let Some((length, kind, seq)) = parse(rest) else {
                break;
            };
            let Some(body) = rest.get(HEAD..HEAD + length) else {
                break;
            };
            match kind {
                b'T' => {}
                b'Q' => {
                    self.ended = true;
                    break;
                }
                _ => return Err(garbled()),
            }
            into.push(Given::Task(Task {
                seq,
                id: None,
                key: None,
                body: body.into(),
            }));
            at += HEAD + length;
            count += 1;
        }
        self.read.advance(at);
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
        let count = self.take(at_most, into)?;
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

/// The client has ended, or wants everything to end: nobody waits for an answer.
fn gone() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

/// What became of it.
#[derive(Debug)]
pub struct Answers {
    stream: Rc<UnixStream>,
    unsent: BytesMut,
    credit: usize,
    broken: bool,
}

impl Answers {
    fn write(&mut self, kind: u8, (seq, micros, peak_kib): (u64, u64, u64), body: &[u8]) {
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        self.unsent.extend_from_slice(&length.to_le_bytes());
        self.unsent.extend_from_slice(&[kind]);
        self.unsent.extend_from_slice(&seq.to_le_bytes());
        self.unsent.extend_from_slice(&small(micros));
        self.unsent.extend_from_slice(&small(peak_kib));
        self.unsent.extend_from_slice(body);
    }

    fn push(&mut self) {
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

    fn poll_below(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<io::Result<()>> {
        loop {
            self.push();
            if self.broken {
                return Poll::Ready(Err(gone()));
            }
            if self.unsent.is_empty() {
                return Poll::Ready(Ok(()));
            }
            // What waits is sent as soon as the client has read, whoever else wakes us.
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
            Verdict::Done(body) => self.write(b'K', figures, &body),
            Verdict::Failed(Failure {
                cause,
                detail: Detail::Raised(body),
                ..
            }) => {
                let kind = if cause == "unserializable" {
                    b'U'
                } else {
                    b'E'
                };
                self.write(kind, figures, &body);
            }
            Verdict::Failed(failure) => {
                let Detail::Told(message) = &failure.detail else {
                    return;
                };
                let words = json!({
                    "cause": failure.cause,
                    "message": message,
                    "attempts": failure.attempts,
                    "peak": outcome.peak.map(crate::units::Bytes::get),
                });
                self.write(b'D', figures, words.to_string().as_bytes());
            }
        }
    }

    fn credit(&mut self, tasks: usize) {
        if tasks != self.credit {
            self.credit = tasks;
            self.write(b'W', (tasks as u64, 0, 0), &[]);
        }
    }

    fn give_up(&mut self, words: &[u8]) {
        self.write(b'X', (0, 0, 0), words);
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_below(cx, BEHIND)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_below(cx, 0)
    }

    fn flush(&mut self) {
        self.push();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn frame(kind: u8, seq: u64, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap();
        [&length.to_le_bytes()[..], &[kind], &seq.to_le_bytes(), body].concat()
    }

    /// Runs `look` with the pool's side of a client.
    fn with(look: impl AsyncFnOnce(Blocking, Tasks, Answers)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (client, pool) = Blocking::pair().unwrap();
            let (tasks, answers) = open(pool).unwrap();
            look(client, tasks, answers).await;
        });
    }

    async fn next(tasks: &mut Tasks, at_most: usize) -> io::Result<(bool, Vec<u64>)> {
        let mut into = Vec::new();
        let more = std::future::poll_fn(|cx| tasks.poll_tasks(cx, at_most, &mut into)).await?;
        Ok((more, into.iter().map(Given::seq).collect()))
    }

    #[test]
    fn tasks_come_whole_however_they_are_cut() {
        with(async |mut client, mut tasks, _answers| {
            let all = [
                frame(b'T', 1, b"one"),
                frame(b'T', 2, b""),
                frame(b'Q', 0, b""),
            ]
            .concat();
            client.write_all(&all[..20]).unwrap();
            assert_eq!(next(&mut tasks, 9).await.unwrap(), (true, vec![1]));
            client.write_all(&all[20..]).unwrap();
            assert_eq!(next(&mut tasks, 9).await.unwrap(), (false, vec![2]));
        });
    }

    #[test]
    fn no_more_are_taken_than_are_wanted() {
        with(async |mut client, mut tasks, _answers| {
            let all: Vec<u8> = (1..=3).flat_map(|seq| frame(b'T', seq, b"x")).collect();
            client.write_all(&all).unwrap();
            assert_eq!(next(&mut tasks, 2).await.unwrap(), (true, vec![1, 2]));
            assert_eq!(next(&mut tasks, 2).await.unwrap(), (true, vec![3]));
        });
    }

    #[test]
    fn a_client_that_ends_is_seen_though_its_tasks_wait() {
        with(async |mut client, mut tasks, _answers| {
            client.write_all(&frame(b'T', 1, b"x")).unwrap();
            drop(client);
            let error = std::future::poll_fn(|cx| tasks.poll_gone(cx)).await;
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        });
    }

    #[test]
    fn a_client_that_ends_after_its_last_word_is_seen() {
        with(async |mut client, mut tasks, _answers| {
            client.write_all(&frame(b'Q', 0, b"")).unwrap();
            assert_eq!(next(&mut tasks, 9).await.unwrap(), (false, vec![]));
            drop(client);
            let error = std::future::poll_fn(|cx| tasks.poll_gone(cx)).await;
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        });
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        with(async |mut client, mut tasks, _answers| {
            client.write_all(&frame(b'?', 1, b"x")).unwrap();
            let error = next(&mut tasks, 9).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        });
    }
}
