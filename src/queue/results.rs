//! Writes results as lines of JSON.
//!
//! A thread writes, because the reader of the output may be slow. The thread reports how much it
//! has written, so that the event loop knows how many outcomes wait.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    io::{self, Write},
    mem,
    pin::Pin,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    task::{Context, Poll},
    thread,
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Detail, Journal, Outcome, Sink, Verdict, replay::Replay, result_json};

/// Above this number of waiting outcomes, [`Sink::poll_room`] is pending.
const WAIT_MAX: usize = 1000;
/// The same limit for the bytes of waiting outcomes.
const WAIT_BYTES_MAX: usize = 16 << 20;
/// Bytes of a write: text is collected up to this size.
const BATCH_BYTES: usize = 256 << 10;
/// The memory of an outcome in addition to its result or message.
const OVERHEAD: usize = 256;

/// The order of the results in the output.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// The order in which tasks end.
    AsTheyEnd,
    /// The order in which tasks were given, which is the order of the calls of [`Sink::expect`].
    AsGiven,
}

/// Writes results to a journal, and then to an output.
#[derive(Debug)]
pub struct Results {
    /// `None`: there are no more outcomes.
    messages: Option<Sender<Message>>,
    news: UnboundedReceiver<News>,
    order: Order,
    /// Outcomes that are not written yet.
    waiting: Load,
    /// The first error: of the thread, or because the reader of the output has gone.
    broken: Option<(io::ErrorKind, String)>,
    /// The thread has closed the output and the journal.
    is_over: bool,
    has_begun: bool,
    /// The output is a stream, so that a write replaces no earlier content.
    is_stream: bool,
    reader_gone: Option<ReaderGone>,
}

/// A future that is ready when the reader of the output has gone.
pub struct ReaderGone(pub Pin<Box<dyn Future<Output = ()>>>);

impl fmt::Debug for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReaderGone")
    }
}

/// The number of outcomes and their bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    count: usize,
    bytes: usize,
}

impl Load {
    fn of(outcome: &Outcome) -> Self {
        let length = match &outcome.verdict {
            Verdict::Done(result) => result.len(),
            Verdict::Failed(failure) => match &failure.detail {
                Detail::Raised(exception) => exception.len(),
                Detail::Message(message) => message.len(),
            },
        };
        Self {
            count: 1,
            bytes: length + OVERHEAD,
        }
    }

    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.bytes += other.bytes;
    }

    fn subtract(&mut self, other: Self) {
        self.count = self.count.saturating_sub(other.count);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}

#[derive(Debug)]
enum Message {
    Begin,
    /// No worker could be started: results go to the output only, not to the journal.
    GiveUp,
    Expect(u64),
    Put(Outcome),
}

#[derive(Debug)]
enum News {
    Written(Load),
    Broken(io::Error),
    Over,
}

impl Results {
    /// Writes to `output` in a thread, but not before [`Sink::begin`]. The results in `journal` are
    /// written first or, with [`Order::AsGiven`], at their place in the order. The output is
    /// flushed even if there are no results, so that its file is created.
    ///
    /// # Errors
    /// No thread can be started, or the journal's descriptor cannot be duplicated.
    pub fn start<W: Write + Send + 'static>(
        output: W,
        order: Order,
        journal: Option<Journal>,
    ) -> io::Result<Self> {
        let (messages, inbox) = channel();
        let (news_sender, news) = unbounded_channel();
        let writer = Writer {
            output: Some(output),
            replay: journal.as_ref().map(Journal::replay).transpose()?,
            journal,
            order,
            expected: VecDeque::new(),
            held: BTreeMap::new(),
            line: Vec::new(),
            records: Vec::new(),
            text: Vec::new(),
            written: Load::default(),
            news: news_sender,
        };
        thread::Builder::new()
            .name("results".to_owned())
            .spawn(move || writer.run(&inbox))?;
        Ok(Self {
            messages: Some(messages),
            news,
            order,
            waiting: Load::default(),
            broken: None,
            is_over: false,
            has_begun: false,
            is_stream: false,
            reader_gone: None,
        })
    }

    /// Sets whether the output is a stream. A stream receives the results even if no worker could
    /// be started.
    #[must_use]
    pub const fn with_stream(mut self, is_stream: bool) -> Self {
        self.is_stream = is_stream;
        self
    }

    /// Sets the future that tells that the reader of the output has gone, so that this is noticed
    /// before the next write.
    #[must_use]
    pub fn with_reader_gone(mut self, reader_gone: Option<ReaderGone>) -> Self {
        self.reader_gone = reader_gone;
        self
    }

    fn send(&self, message: Message) {
        if let Some(messages) = &self.messages {
            // If the thread has ended, it has reported the reason.
            let _ = messages.send(message);
        }
    }

    fn receive_news(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Poll::Ready(news) = self.news.poll_recv(cx) {
            match news {
                Some(News::Written(load)) => self.waiting.subtract(load),
                Some(News::Broken(error)) => {
                    self.broken.get_or_insert((error.kind(), error.to_string()));
                }
                Some(News::Over) | None => {
                    self.is_over = true;
                    break;
                }
            }
        }
        if let Some(gone) = &mut self.reader_gone
            && gone.0.as_mut().poll(cx).is_ready()
        {
            self.reader_gone = None;
            let kind = io::ErrorKind::BrokenPipe;
            self.broken.get_or_insert((kind, kind.to_string()));
        }
        match &self.broken {
            Some((kind, message)) => Err(io::Error::new(*kind, message.clone())),
            None => Ok(()),
        }
    }
}

impl Sink for Results {
    fn begin(&mut self) {
        if !mem::replace(&mut self.has_begun, true) {
            self.send(Message::Begin);
        }
    }

    fn complete(&mut self) {
        // If the reader closes the output from now on, it has all results, unless a write fails.
        self.reader_gone = None;
    }

    fn give_up(&mut self, _error: &[u8]) {
        if self.is_stream && !mem::replace(&mut self.has_begun, true) {
            self.send(Message::GiveUp);
        }
    }

    fn expect(&mut self, seq: u64) {
        if self.order == Order::AsGiven {
            self.send(Message::Expect(seq));
        }
    }

    fn put(&mut self, outcome: Outcome) {
        self.waiting.add(Load::of(&outcome));
        self.send(Message::Put(outcome));
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Err(error) = self.receive_news(cx) {
            return Poll::Ready(Err(error));
        }
        if self.waiting.count > WAIT_MAX || self.waiting.bytes > WAIT_BYTES_MAX {
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.messages = None;
        let received = self.receive_news(cx);
        if self.is_over {
            return Poll::Ready(received);
        }
        Poll::Pending
    }
}

struct Writer<W> {
    /// `None`: a write has failed. The journal is still written.
    output: Option<W>,
    journal: Option<Journal>,
    replay: Option<Replay>,
    order: Order,
    /// Only for [`Order::AsGiven`]: tasks without a written result.
    expected: VecDeque<u64>,
    /// Only for [`Order::AsGiven`]: results that wait for the results of earlier tasks.
    held: BTreeMap<u64, (Vec<u8>, Load)>,
    /// The line of the current result.
    line: Vec<u8>,
    /// Text for the journal.
    records: Vec<u8>,
    /// Text for the output.
    text: Vec<u8>,
    /// Results that were added to `text` and are not reported as written yet.
    written: Load,
    news: UnboundedSender<News>,
}

impl<W: Write> Writer<W> {
    fn run(mut self, inbox: &Receiver<Message>) {
        if let Err(error) = self.write_all(inbox) {
            let _ = self.news.send(News::Broken(error));
        }
        // After `Over`, the caller may open the output and the journal again.
        self.output = None;
        self.drop_journal();
        let _ = self.news.send(News::Over);
    }

    fn drop_journal(&mut self) {
        (self.journal, self.replay) = (None, None);
    }

    fn write_all(&mut self, inbox: &Receiver<Message>) -> io::Result<()> {
        let mut early = Vec::new();
        loop {
            match inbox.recv() {
                Ok(Message::Begin) => break,
                Ok(Message::GiveUp) => {
                    self.drop_journal();
                    break;
                }
                Ok(message) => early.push(message),
                // No worker could be started: the output stays unchanged.
                Err(_) => return Ok(()),
            }
        }
        if let Some(journal) = &mut self.journal {
            journal.begin()?;
        }
        if self.order == Order::AsTheyEnd {
            self.replay_all()?;
        }
        for message in early {
            self.handle(message)?;
        }
        self.write_batch()?;
        while let Some(message) = self.next_message(inbox)? {
            self.handle(message)?;
            while self.records.len() + self.text.len() < BATCH_BYTES
                && let Ok(message) = inbox.try_recv()
            {
                self.handle(message)?;
            }
            self.write_batch()?;
        }
        self.write_held_results()?;
        self.flush();
        match &mut self.journal {
            Some(journal) => journal.sync(),
            None => Ok(()),
        }
    }

    /// The next message. Syncs the journal while it waits.
    fn next_message(&mut self, inbox: &Receiver<Message>) -> io::Result<Option<Message>> {
        while let Some(journal) = &mut self.journal
            && let Some(time) = journal.sync_in()
        {
            match inbox.recv_timeout(time) {
                Ok(message) => return Ok(Some(message)),
                Err(RecvTimeoutError::Timeout) => journal.sync()?,
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
        Ok(inbox.recv().ok())
    }

    fn handle(&mut self, message: Message) -> io::Result<()> {
        let outcome = match message {
            Message::Expect(seq) => {
                self.expected.push_back(seq);
                return Ok(());
            }
            Message::Put(outcome) => outcome,
            Message::Begin | Message::GiveUp => return Ok(()),
        };
        self.line.clear();
        result_json::write_line(&outcome, &mut self.line)?;
        if let Some(journal) = &mut self.journal
            && outcome.is_final()
        {
            let open = self.line.strip_suffix(b"}").unwrap_or(&self.line);
            journal.record(&mut self.records, outcome.seq, open)?;
        }
        self.line.push(b'\n');
        let load = Load::of(&outcome);
        match self.order {
            Order::AsTheyEnd => {
                self.text.extend_from_slice(&self.line);
                self.written.add(load);
            }
            Order::AsGiven => {
                let line = mem::take(&mut self.line);
                self.held.insert(outcome.seq, (line, load));
            }
        }
        Ok(())
    }

    /// Writes the journal before the output, so that each result in the output is in the journal.
    fn write_batch(&mut self) -> io::Result<()> {
        if let Some(journal) = &mut self.journal {
            journal.append(&self.records)?;
        }
        self.records.clear();
        self.write_ready_results()?;
        self.flush();
        Ok(())
    }

    /// Writes the held results that no longer wait for an earlier one.
    fn write_ready_results(&mut self) -> io::Result<()> {
        while let Some(&seq) = self.expected.front() {
            self.replay_below(seq)?;
            let Some((line, load)) = self.held.remove(&seq) else {
                break;
            };
            self.expected.pop_front();
            self.write_held(&line, load);
        }
        Ok(())
    }

    /// Writes all held results, because the missing results before them will not come.
    fn write_held_results(&mut self) -> io::Result<()> {
        while let Some((seq, (line, load))) = self.held.pop_first() {
            self.replay_below(seq)?;
            self.write_held(&line, load);
        }
        self.replay_below(u64::MAX)
    }

    fn write_held(&mut self, line: &[u8], load: Load) {
        self.text.extend_from_slice(line);
        self.written.add(load);
        self.write_if_full();
    }

    fn replay_all(&mut self) -> io::Result<()> {
        self.replay_with(Replay::next)
    }

    fn replay_below(&mut self, limit: u64) -> io::Result<()> {
        if self.order == Order::AsTheyEnd {
            return Ok(());
        }
        self.replay_with(|replay, line| replay.next_below(limit, line))
    }

    fn replay_with(
        &mut self,
        mut next: impl FnMut(&mut Replay, &mut Vec<u8>) -> io::Result<bool>,
    ) -> io::Result<()> {
        let Some(mut replay) = self.replay.take() else {
            return Ok(());
        };
        while self.output.is_some()
            && next(&mut replay, &mut self.line).map_err(|error| match &self.journal {
                Some(journal) => journal.with_path(&error),
                None => error,
            })?
        {
            self.text.extend_from_slice(&self.line);
            self.write_if_full();
        }
        self.replay = Some(replay);
        Ok(())
    }

    fn write_if_full(&mut self) {
        if self.text.len() >= BATCH_BYTES {
            self.write_text(false);
        }
    }

    fn flush(&mut self) {
        self.write_text(true);
        let written = mem::take(&mut self.written);
        if written.count > 0 {
            let _ = self.news.send(News::Written(written));
        }
    }

    fn write_text(&mut self, and_flush: bool) {
        if let Some(output) = &mut self.output {
            let mut result = output.write_all(&self.text);
            if and_flush {
                result = result.and_then(|()| output.flush());
            }
            if let Err(error) = result {
                self.output = None;
                let message = format!("write results: {error}");
                let error = io::Error::new(error.kind(), message);
                let _ = self.news.send(News::Broken(error));
            }
        }
        self.text.clear();
    }
}

#[cfg(test)]
#[path = "results_tests.rs"]
mod tests;
