//! Standard error of a pool: its messages, its bar, and what tasks print.
//!
//! A thread writes, for whoever reads may be slow, or stopped: the loop never waits for it. Who
//! prints much asks first whether there is room.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use indicatif::ProgressBar;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::escape;

/// More than this does not wait to be written, if whoever prints heeds it.
const WAIT_MAX: usize = 1 << 20;
/// Once there was no room, there is none until no more than this waits.
const WAIT_LOW: usize = WAIT_MAX / 2;
/// Our own messages do not ask. Where so much waits, nobody reads, and they are dropped.
const DROP_ABOVE: usize = 2 * WAIT_MAX;
/// Between two tries of an output that is full and does not block.
const AGAIN: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Console {
    /// None: no more come.
    messages: Option<Sender<Message>>,
    waiting: Arc<AtomicUsize>,
    /// One for each time that there is room again. Its end: all is written.
    room: UnboundedReceiver<()>,
    escapes: bool,
}

#[derive(Debug)]
enum Message {
    Text(Vec<u8>),
    /// The bar's place and words.
    Bar(u64, String),
    ClearBar,
}

impl Message {
    fn length(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bar(_, words) => words.len(),
            Self::ClearBar => 0,
        }
    }
}

impl Console {
    /// Writes to `output` in a thread, and above `bar` if there is one. Control characters are
    /// shown as what they are where `escapes`: on a terminal.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn start<W: Write + Send + 'static>(
        output: W,
        bar: Option<ProgressBar>,
        escapes: bool,
    ) -> io::Result<Self> {
        let (messages, inbox) = channel();
        let (news, room) = unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let writer = Writer {
            output,
            bar,
            waiting: Arc::clone(&waiting),
            room: news,
        };
        thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || writer.run(&inbox))?;
        Ok(Self {
            messages: Some(messages),
            waiting,
            room,
            escapes,
        })
    }

    fn send(&self, message: Message) {
        if let Some(messages) = &self.messages {
            self.waiting.fetch_add(message.length(), Ordering::AcqRel);
            // It goes on until nobody sends any more.
            let _ = messages.send(message);
        }
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// A message of ours.
    pub(super) fn say(&self, line: &str) {
        if self.waiting() <= DROP_ABOVE {
            let line = escape::lines(line.trim_end());
            self.send(Message::Text(format!("supervise: {line}\n").into_bytes()));
        }
    }

    /// Whole lines of tasks.
    pub(super) fn print(&self, lines: &[u8]) {
        let text = String::from_utf8_lossy(lines);
        let text = if self.escapes {
            escape::prints(&text).into_owned()
        } else {
            text.into_owned()
        };
        self.send(Message::Text(text.into_bytes()));
    }

    /// The bar at its place, of 1000. One that is behind is not shown.
    pub(super) fn show(&self, at: u64, words: String) {
        if self.waiting() <= WAIT_LOW {
            self.send(Message::Bar(at, words));
        }
    }

    pub(super) fn clear_bar(&self) {
        self.send(Message::ClearBar);
    }

    pub(super) fn has_room(&self) -> bool {
        self.waiting() <= WAIT_MAX
    }

    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.waiting() <= WAIT_LOW {
                return Poll::Ready(());
            }
            // RACE: the thread sends after it has counted, so that what was counted before this is
            // seen above, and what is counted after it wakes us.
            match self.room.poll_recv(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Nothing more comes. Ready: all is written.
    pub(super) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.messages = None;
        while let Poll::Ready(news) = self.room.poll_recv(cx) {
            if news.is_none() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

struct Writer<W> {
    output: W,
    bar: Option<ProgressBar>,
    waiting: Arc<AtomicUsize>,
    room: UnboundedSender<()>,
}

impl<W: Write> Writer<W> {
    fn run(mut self, inbox: &Receiver<Message>) {
        while let Ok(message) = inbox.recv() {
            let length = message.length();
            self.take(message);
            let before = self.waiting.fetch_sub(length, Ordering::AcqRel);
            if before > WAIT_LOW && before - length <= WAIT_LOW {
                let _ = self.room.send(());
            }
        }
    }

    fn take(&mut self, message: Message) {
        match (message, &self.bar) {
            (Message::Text(text), Some(bar)) => {
                let bar = bar.clone();
                bar.suspend(|| self.write(&text));
            }
            (Message::Text(text), None) => self.write(&text),
            (Message::Bar(at, words), Some(bar)) => {
                bar.set_position(at);
                bar.set_message(words);
                bar.tick();
            }
            (Message::ClearBar, Some(bar)) => bar.finish_and_clear(),
            (Message::Bar(..) | Message::ClearBar, None) => {}
        }
    }

    /// What cannot be written is dropped, and no task fails for it.
    fn write(&mut self, mut text: &[u8]) {
        while !text.is_empty() {
            match self.output.write(text) {
                Ok(0) => break,
                Ok(length) => text = text.get(length..).unwrap_or_default(),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    // Another program that writes there has set O_NONBLOCK.
                    io::ErrorKind::WouldBlock => thread::park_timeout(AGAIN),
                    _ => break,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::Mutex};

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    /// Writes when it may: each token is one write.
    struct Slow {
        tokens: Receiver<()>,
        text: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.tokens
                .recv_timeout(SOON)
                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            self.text.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow(escapes: bool) -> (Console, Sender<()>, Arc<Mutex<Vec<u8>>>) {
        let (sender, tokens) = channel();
        let text = Arc::default();
        let output = Slow {
            tokens,
            text: Arc::clone(&text),
        };
        let console = Console::start(output, None, escapes).unwrap();
        (console, sender, text)
    }

    fn wait<T>(of: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let limited = async { tokio::time::timeout(SOON, of).await.unwrap() };
        runtime.block_on(limited)
    }

    fn is_pending(console: &mut Console) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        console.poll_room(&mut cx).is_pending()
    }

    #[test]
    fn a_reader_that_is_behind_is_waited_for_and_loses_nothing() {
        let (mut console, tokens, text) = slow(false);
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let mut sent = 0;
        while console.has_room() {
            console.print(&line);
            sent += 1;
        }
        assert_eq!(sent, WAIT_MAX / line.len() + 1);
        assert!(is_pending(&mut console));
        console.say("so\u{1b}");
        for _ in 0..=sent {
            tokens.send(()).unwrap();
        }
        wait(poll_fn(|cx| console.poll_room(cx)));
        wait(poll_fn(|cx| console.poll_finish(cx)));
        let text = text.lock().unwrap();
        assert_eq!(
            text.len(),
            sent * line.len() + "supervise: so\\u{1b}\n".len()
        );
        assert!(text.ends_with(b"x\nsupervise: so\\u{1b}\n"));
    }

    #[test]
    fn messages_of_ours_do_not_pile_up_where_nobody_reads() {
        let (console, _tokens, _text) = slow(false);
        let long = "x".repeat(1 << 16);
        for _ in 0..1000 {
            console.say(&long);
            console.show(1, long.clone());
        }
        assert!(console.waiting() < DROP_ABOVE + 2 * long.len());
    }

    #[test]
    fn an_output_that_breaks_drops_what_comes_and_ends() {
        let (mut console, tokens, text) = slow(false);
        drop(tokens);
        console.print(b"one\n");
        console.print(b"two\n");
        wait(poll_fn(|cx| console.poll_finish(cx)));
        assert!(text.lock().unwrap().is_empty());
    }

    #[test]
    fn an_output_that_does_not_block_is_waited_for() {
        struct Full(Option<()>, Arc<Mutex<Vec<u8>>>);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                // Every second try finds room, for one byte.
                self.0 = self.0.xor(Some(()));
                self.0.ok_or(io::ErrorKind::WouldBlock)?;
                self.1.lock().unwrap().push(bytes[0]);
                Ok(1)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let text = Arc::default();
        let full = Full(Some(()), Arc::clone(&text));
        let mut console = Console::start(full, None, false).unwrap();
        console.print(b"whole\n");
        wait(poll_fn(|cx| console.poll_finish(cx)));
        assert_eq!(*text.lock().unwrap(), b"whole\n");
    }

    #[test]
    fn a_terminal_gets_no_control_characters_and_a_file_gets_them_as_they_are() {
        for (escapes, expected) in [
            (true, "[task 1] a\t\\u{1b}[2J\u{fffd}\\r\n"),
            (false, "[task 1] a\t\u{1b}[2J\u{fffd}\r\n"),
        ] {
            let (mut console, tokens, text) = slow(escapes);
            tokens.send(()).unwrap();
            console.print(b"[task 1] a\t\x1b[2J\xff\r\n");
            wait(poll_fn(|cx| console.poll_finish(cx)));
            assert_eq!(str::from_utf8(&text.lock().unwrap()).unwrap(), expected);
        }
    }
}
