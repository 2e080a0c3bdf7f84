//! Writes results as lines of JSON.
//!
//! A thread writes, because the reader of the output may be slow. The thread reports how much it
//! has written, so that the loop knows how far the writer is behind.

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

use super::{Detail, Journal, Outcome, Sink, Verdict, replay::Replay, wording};

/// Above this number of waiting outcomes, [`Sink::poll_room`] is pending.
const WAIT_MAX: usize = 1000;
/// The same for their bytes.
const WAIT_BYTES_MAX: usize = 16 << 20;
/// Bytes written at once.
const BATCH_BYTES: usize = 256 << 10;
/// What an outcome takes in memory besides its result or message.
const OVERHEAD: usize = 256;

/// The order of the results in the output.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// As tasks end.
    AsTheyEnd,
    /// As tasks were given, in the order of the calls of [`Sink::expect`].
    AsGiven,
}

/// Writes results to an output, and before that to a journal.
#[derive(Debug)]
pub struct Results {
    /// `None`: no more outcomes come.
    messages: Option<Sender<Message>>,
    news: UnboundedReceiver<News>,
    order: Order,
    waiting: Load,
    broken: Option<(io::ErrorKind, String)>,
    is_over: bool,
    has_begun: bool,
    /// The output is a stream: writing to it destroys nothing.
    is_stream: bool,
    reader_gone: Option<ReaderGone>,
}

/// A future that is ready once the output has no reader any more.
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
        let words = match &outcome.verdict {
            Verdict::Done(result) => result.len(),
            Verdict::Failed(failure) => match &failure.detail {
                Detail::Raised(words) => words.len(),
                Detail::Told(words) => words.len(),
            },
        };
        Self {
            count: 1,
            bytes: words + OVERHEAD,
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
    /// Writes to `output` in a thread, and writes nothing before [`Sink::begin`]. The results in
    /// `journal` come first or, in the order of the tasks, when it is their turn. The output is
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

    /// Whether the output is a stream. If so, it gets the results even if no worker could be
    /// started.
    #[must_use]
    pub const fn streaming(mut self, is_stream: bool) -> Self {
        self.is_stream = is_stream;
        self
    }

    /// Watches for the end of the output's reader, which is then noticed before the next write.
    #[must_use]
    pub fn watching(mut self, reader_gone: Option<ReaderGone>) -> Self {
        self.reader_gone = reader_gone;
        self
    }

    fn send(&self, message: Message) {
        if let Some(messages) = &self.messages {
            // The thread reports why before it ends.
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
        // A reader that closes the output from now on has all results, unless a write fails.
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
    /// Only for [`Order::AsGiven`]: tasks whose results were not written yet.
    expected: VecDeque<u64>,
    /// Only for [`Order::AsGiven`]: results that wait for their turn.
    held: BTreeMap<u64, (Vec<u8>, Load)>,
    line: Vec<u8>,
    /// Text for the journal.
    records: Vec<u8>,
    /// Text for the output.
    text: Vec<u8>,
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
            self.take(message)?;
        }
        self.write_batch()?;
        while let Some(message) = self.wait(inbox)? {
            self.take(message)?;
            while self.records.len() + self.text.len() < BATCH_BYTES
                && let Ok(message) = inbox.try_recv()
            {
                self.take(message)?;
            }
            self.write_batch()?;
        }
        self.release_rest()?;
        self.flush();
        match &mut self.journal {
            Some(journal) => journal.sync(),
            None => Ok(()),
        }
    }

    fn wait(&mut self, inbox: &Receiver<Message>) -> io::Result<Option<Message>> {
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

    fn take(&mut self, message: Message) -> io::Result<()> {
        let outcome = match message {
            Message::Expect(seq) => {
                self.expected.push_back(seq);
                return Ok(());
            }
            Message::Put(outcome) => outcome,
            Message::Begin | Message::GiveUp => return Ok(()),
        };
        self.line.clear();
        wording::write_line(&outcome, &mut self.line)?;
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

    /// Writes the journal before the output, so that no result is in the output alone.
    fn write_batch(&mut self) -> io::Result<()> {
        if let Some(journal) = &mut self.journal {
            journal.append(&self.records)?;
        }
        self.records.clear();
        self.release()?;
        self.flush();
        Ok(())
    }

    /// Writes the held results whose turn it is.
    fn release(&mut self) -> io::Result<()> {
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

    /// Writes all held results, because the results before them do not come any more.
    fn release_rest(&mut self) -> io::Result<()> {
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
                Some(journal) => journal.named(&error),
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
            let mut done = output.write_all(&self.text);
            if and_flush {
                done = done.and_then(|()| output.flush());
            }
            if let Err(error) = done {
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
