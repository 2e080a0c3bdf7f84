//! The standard error of a pool: messages, the progress bar, and the output of tasks.
//!
//! A thread writes, so that the event loop never waits for a slow or stopped reader. Before the
//! loop prints the output of tasks, it checks whether there is room.

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

/// Above this number of waiting bytes, there is no room for the output of tasks.
const WAIT_MAX: usize = 1 << 20;
/// After that, there is room again when this number of bytes wait.
const WAIT_LOW: usize = WAIT_MAX / 2;
/// Messages of `supervise` do not need room. Above this number of waiting bytes, they are dropped.
const DROP_ABOVE: usize = 2 * WAIT_MAX;
/// The pause before a write to a full, non-blocking output is retried.
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// Writes to standard error in a thread.
#[derive(Debug)]
pub(super) struct Console {
    /// `None`: there are no more messages.
    messages: Option<Sender<Message>>,
    /// Bytes that are not written yet.
    waiting: Arc<AtomicUsize>,
    /// Receives a message each time that there is room again. Closed when all text is written.
    room: UnboundedReceiver<()>,
    escapes: bool,
}

#[derive(Debug)]
enum Message {
    Text(Vec<u8>),
    /// The position and the text of the bar.
    Bar(u64, String),
    ClearBar,
}

impl Message {
    fn length(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bar(_, text) => text.len(),
            Self::ClearBar => 0,
        }
    }
}

impl Console {
    /// Writes to `output` in a thread, above the line of `bar` if there is one. With `escapes`,
    /// control characters in the output of tasks are escaped, for a terminal.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start<W: Write + Send + 'static>(
        output: W,
        bar: Option<ProgressBar>,
        escapes: bool,
    ) -> io::Result<Self> {
        let (messages, inbox) = channel();
        let (room_sender, room) = unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let writer = Writer {
            output,
            bar,
            waiting: Arc::clone(&waiting),
            room: room_sender,
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
            // The thread ends only after the sender is dropped.
            let _ = messages.send(message);
        }
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Writes a message of `supervise` itself.
    pub(super) fn say(&self, line: &str) {
        if self.waiting() <= DROP_ABOVE {
            let line = escape::lines(line.trim_end());
            self.send(Message::Text(format!("supervise: {line}\n").into_bytes()));
        }
    }

    /// Writes complete lines of the output of tasks.
    pub(super) fn print(&self, lines: &[u8]) {
        let text = String::from_utf8_lossy(lines);
        let text = if self.escapes {
            escape::prints(&text).into_owned()
        } else {
            text.into_owned()
        };
        self.send(Message::Text(text.into_bytes()));
    }

    /// Updates the bar; `position` is from 0 to 1000. Omitted if too many bytes wait.
    pub(super) fn show_bar(&self, position: u64, text: String) {
        if self.waiting() <= WAIT_LOW {
            self.send(Message::Bar(position, text));
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
            // RACE: the thread reduces `waiting` before it sends, so either the check above sees
            // the reduction, or the message wakes this task.
            match self.room.poll_recv(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Accepts no more messages. Ready when all of them are written.
    pub(super) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.messages = None;
        while let Poll::Ready(message) = self.room.poll_recv(cx) {
            if message.is_none() {
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
            self.write_message(message);
            let before = self.waiting.fetch_sub(length, Ordering::AcqRel);
            if before > WAIT_LOW && before - length <= WAIT_LOW {
                let _ = self.room.send(());
            }
        }
    }

    fn write_message(&mut self, message: Message) {
        match (message, &self.bar) {
            (Message::Text(text), Some(bar)) => {
                let bar = bar.clone();
                bar.suspend(|| self.write(&text));
            }
            (Message::Text(text), None) => self.write(&text),
            (Message::Bar(position, text), Some(bar)) => {
                bar.set_position(position);
                bar.set_message(text);
                bar.tick();
            }
            (Message::ClearBar, Some(bar)) => bar.finish_and_clear(),
            (Message::Bar(..) | Message::ClearBar, None) => {}
        }
    }

    /// Writes a text. If that fails, drops the text, so that no task fails because of it.
    fn write(&mut self, mut text: &[u8]) {
        while !text.is_empty() {
            match self.output.write(text) {
                Ok(0) => break,
                Ok(length) => text = text.get(length..).unwrap_or_default(),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    // Another program that shares this output has set O_NONBLOCK.
                    io::ErrorKind::WouldBlock => thread::park_timeout(RETRY_AFTER),
                    _ => break,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::Mutex, task::Wake};

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    /// An output that accepts one write for each token.
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

    /// Records that a task was woken.
    struct Woken(Sender<()>);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(());
        }
    }

    #[test]
    fn a_slow_reader_gets_all_output() {
        let (mut console, tokens, text) = slow(false);
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let mut sent = 0;
        while console.has_room() {
            console.print(&line);
            sent += 1;
        }
        assert_eq!(sent, WAIT_MAX / line.len() + 1);
        let (wakes, woken) = channel();
        let waker = Arc::new(Woken(wakes)).into();
        let mut cx = Context::from_waker(&waker);
        assert!(console.poll_room(&mut cx).is_pending());
        console.say("so\u{1b}");
        for _ in 0..=sent {
            tokens.send(()).unwrap();
        }
        woken.recv_timeout(SOON).expect("the task is woken");
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
    fn messages_of_supervise_are_dropped_while_the_output_is_blocked() {
        let (console, _tokens, _text) = slow(false);
        let long = "x".repeat(1 << 16);
        for _ in 0..1000 {
            console.say(&long);
            console.show_bar(1, long.clone());
        }
        assert!(console.waiting() < DROP_ABOVE + 2 * long.len());
    }

    #[test]
    fn after_a_failed_write_messages_are_dropped_and_the_thread_ends() {
        let (mut console, tokens, text) = slow(false);
        drop(tokens);
        console.print(b"one\n");
        console.print(b"two\n");
        wait(poll_fn(|cx| console.poll_finish(cx)));
        assert!(text.lock().unwrap().is_empty());
    }

    #[test]
    fn a_full_output_that_does_not_block_is_retried() {
        struct Full(Option<()>, Arc<Mutex<Vec<u8>>>);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                // Every second write fails, and the others take one byte.
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
    fn control_characters_are_escaped_on_a_terminal_and_unchanged_in_a_file() {
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
