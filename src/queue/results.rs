//! Results as lines of JSON.
//!
//! A thread writes, for whoever reads them may be slow. What it has written comes back as a
//! number, so that the loop knows how far it is behind.

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

/// More outcomes do not wait, if whoever gives tasks heeds it.
const WAIT_MAX: usize = 1000;
/// More bytes of them neither.
const WAIT_BYTES_MAX: usize = 16 << 20;
/// Written at once.
const BATCH_BYTES: usize = 256 << 10;
/// What an outcome is beside its words.
const OVERHEAD: usize = 256;

/// In which order results come out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// As tasks end.
    AsTheyEnd,
    /// As tasks were given, which the sink is told by [`Sink::expect`].
    AsGiven,
}

/// Writes results to an output, and before that to a journal.
#[derive(Debug)]
pub struct Results {
    /// None: no more come.
    messages: Option<Sender<Message>>,
    news: UnboundedReceiver<News>,
    order: Order,
    waiting: Load,
    broken: Option<(io::ErrorKind, String)>,
    is_over: bool,
    has_begun: bool,
    /// The output loses nothing by what is written.
    is_stream: bool,
    reader_gone: Option<ReaderGone>,
}

/// Is ready when nobody reads the output any more.
pub struct ReaderGone(pub Pin<Box<dyn Future<Output = ()>>>);

impl fmt::Debug for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReaderGone")
    }
}

/// How much of it.
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
    /// Nothing could be started, and nothing is done: that is for the output only.
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
    /// Writes to `output` in a thread, and nothing before [`Sink::begin`]. What is done in
    /// `journal` is written first, or, in order, when its turn comes. An output that is empty is
    /// flushed nevertheless, so that it is there.
    ///
    /// # Errors
    /// There is no thread to be had, or no copy of the journal's descriptor.
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
            record: Vec::new(),
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

    /// Whether the output is one that can only grow: then it has the results also of a run that
    /// could not start.
    #[must_use]
    pub const fn streaming(mut self, is_stream: bool) -> Self {
        self.is_stream = is_stream;
        self
    }

    /// Looks out for the reader's end, which is seen before the next result cannot be written.
    #[must_use]
    pub fn watching(mut self, reader_gone: Option<ReaderGone>) -> Self {
        self.reader_gone = reader_gone;
        self
    }

    fn tell(&self, message: Message) {
        if let Some(messages) = &self.messages {
            // It is gone only after it has told why.
            let _ = messages.send(message);
        }
    }

    fn hear(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
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
            Some((kind, told)) => Err(io::Error::new(*kind, told.clone())),
            None => Ok(()),
        }
    }
}

impl Sink for Results {
    fn begin(&mut self) {
        if !mem::replace(&mut self.has_begun, true) {
            self.tell(Message::Begin);
        }
    }

    fn complete(&mut self) {
        // A reader that closes the output now has all that it waited for, unless a write fails.
        self.reader_gone = None;
    }

    fn give_up(&mut self, _words: &[u8]) {
        if self.is_stream && !mem::replace(&mut self.has_begun, true) {
            self.tell(Message::GiveUp);
        }
    }

    fn expect(&mut self, seq: u64) {
        if self.order == Order::AsGiven {
            self.tell(Message::Expect(seq));
        }
    }

    fn put(&mut self, outcome: Outcome) {
        self.waiting.add(Load::of(&outcome));
        self.tell(Message::Put(outcome));
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Err(error) = self.hear(cx) {
            return Poll::Ready(Err(error));
        }
        if self.waiting.count > WAIT_MAX || self.waiting.bytes > WAIT_BYTES_MAX {
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.messages = None;
        let heard = self.hear(cx);
        if self.is_over {
            return Poll::Ready(heard);
        }
        Poll::Pending
    }
}

struct Writer<W> {
    /// None: it broke. The journal goes on without it.
    output: Option<W>,
    journal: Option<Journal>,
    replay: Option<Replay>,
    order: Order,
    /// In order: those that were given and have not come out.
    expected: VecDeque<u64>,
    /// In order: lines before their turn.
    held: BTreeMap<u64, (Vec<u8>, Load)>,
    line: Vec<u8>,
    /// For the journal.
    record: Vec<u8>,
    /// For the output.
    text: Vec<u8>,
    written: Load,
    news: UnboundedSender<News>,
}

impl<W: Write> Writer<W> {
    fn run(mut self, inbox: &Receiver<Message>) {
        if let Err(error) = self.write_all(inbox) {
            let _ = self.news.send(News::Broken(error));
        }
        // Whoever is told that it is over may open the journal again.
        let Self { news, .. } = self.without_journal();
        let _ = news.send(News::Over);
    }

    fn without_journal(mut self) -> Self {
        (self.journal, self.replay) = (None, None);
        self
    }

    fn write_all(&mut self, inbox: &Receiver<Message>) -> io::Result<()> {
        let mut early = Vec::new();
        loop {
            match inbox.recv() {
                Ok(Message::Begin) => break,
                Ok(Message::GiveUp) => {
                    (self.journal, self.replay) = (None, None);
                    break;
                }
                Ok(message) => early.push(message),
                // Nothing could be started: what is there stays as it is.
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
            while self.record.len() + self.text.len() < BATCH_BYTES
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
            && outcome.is_of_its_task()
        {
            let open = self.line.strip_suffix(b"}").unwrap_or(&self.line);
            journal.record(&mut self.record, outcome.seq, open)?;
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

    /// The journal first: what is in the output is in it too.
    fn write_batch(&mut self) -> io::Result<()> {
        if let Some(journal) = &mut self.journal {
            journal.append(&self.record)?;
        }
        self.record.clear();
        self.release()?;
        self.flush();
        Ok(())
    }

    /// Lets those out whose turn it is.
    fn release(&mut self) -> io::Result<()> {
        while let Some(&seq) = self.expected.front() {
            self.replay_below(seq)?;
            let Some((line, load)) = self.held.remove(&seq) else {
                break;
            };
            self.expected.pop_front();
            self.let_out(&line, load);
        }
        Ok(())
    }

    /// No more come: what was to be before them is not waited for.
    fn release_rest(&mut self) -> io::Result<()> {
        while let Some((seq, (line, load))) = self.held.pop_first() {
            self.replay_below(seq)?;
            self.let_out(&line, load);
        }
        self.replay_below(u64::MAX)
    }

    fn let_out(&mut self, line: &[u8], load: Load) {
        self.text.extend_from_slice(line);
        self.written.add(load);
        self.spill();
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
                Some(journal) => journal.broken(&error),
                None => error,
            })?
        {
            self.text.extend_from_slice(&self.line);
            self.spill();
        }
        self.replay = Some(replay);
        Ok(())
    }

    fn spill(&mut self) {
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
                let told = format!("write results: {error}");
                let error = io::Error::new(error.kind(), told);
                let _ = self.news.send(News::Broken(error));
            }
        }
        self.text.clear();
    }
}

#[cfg(test)]
#[path = "results_tests.rs"]
mod tests;
