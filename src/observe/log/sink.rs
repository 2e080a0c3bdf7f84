//! The queue of log lines: bounded, with one thread that writes them. A slow reader or a full disk
//! loses lines, and never blocks the supervisor.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread,
    time::Duration,
};

/// Maximum lines that wait for a slow reader, about 200 KB.
const WAITING_MAX: usize = 1024;
/// The thread only writes, so it needs far less than the default of 2 MiB.
const STACK: usize = 64 << 10;

/// Takes lines. Clones share one queue.
#[derive(Clone, Debug)]
pub(super) struct Sink {
    /// This channel is unbounded. [`Sink::line`] limits the lines by `waiting`, so that there is
    /// always room for a flush behind them.
    entries: Sender<Entry>,
    counters: Arc<Counters>,
}

#[derive(Debug)]
enum Entry {
    /// A line with its line feed, or a record.
    Line(Vec<u8>),
    /// Answered when all entries before it are written.
    Flush(Sender<()>),
}

#[derive(Debug, Default)]
struct Counters {
    waiting: AtomicUsize,
    lost: AtomicU64,
}

impl Sink {
    /// Starts the thread that writes to `out`. `notice` formats a line with the number of lost
    /// lines.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        notice: impl Fn(u64) -> Vec<u8> + Send + 'static,
    ) -> io::Result<Self> {
        let (entries, received) = channel();
        let counters = Arc::new(Counters::default());
        let writer = Writer {
            out,
            notice,
            counters: Arc::clone(&counters),
            reported: 0,
            torn: false,
        };
        let thread = thread::Builder::new()
            .name("log".to_owned())
            .stack_size(STACK);
        thread.spawn(move || writer.run(&received))?;
        Ok(Self { entries, counters })
    }

    /// Takes a line, or counts it as lost. Never blocks.
    pub(super) fn line(&self, line: Vec<u8>) {
        if self.counters.waiting.fetch_add(1, Relaxed) >= WAITING_MAX
            || self.entries.send(Entry::Line(line)).is_err()
        {
            self.counters.waiting.fetch_sub(1, Relaxed);
            self.counters.lost.fetch_add(1, Relaxed);
        }
    }

    /// Lines lost since the start.
    pub(super) fn lost(&self) -> u64 {
        self.counters.lost.load(Relaxed)
    }

    /// Waits until all lines are written, for `time_limit` at most. True if they are.
    pub(super) fn flush(&self, time_limit: Duration) -> bool {
        let (done, written) = channel();
        self.entries.send(Entry::Flush(done)).is_ok() && written.recv_timeout(time_limit).is_ok()
    }
}

/// Writes lines, in its own thread.
struct Writer<W, N> {
    out: W,
    notice: N,
    counters: Arc<Counters>,
    /// Lost lines that a notice was written for.
    reported: u64,
    /// The last line was written in part.
    torn: bool,
}

impl<W: Write, N: Fn(u64) -> Vec<u8>> Writer<W, N> {
    /// Ends when the last [`Sink`] is dropped.
    fn run(mut self, entries: &Receiver<Entry>) {
        loop {
            let entry = match entries.try_recv() {
                Ok(entry) => entry,
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {
                    self.report_losses();
                    let Ok(entry) = entries.recv() else { return };
                    entry
                }
            };
            match entry {
                Entry::Line(line) => {
                    self.counters.waiting.fetch_sub(1, Relaxed);
                    if !self.write(&line) {
                        self.counters.lost.fetch_add(1, Relaxed);
                    }
                }
                Entry::Flush(done) => {
                    self.report_losses();
                    // The caller may have reached its time limit.
                    let _late = done.send(());
                }
            }
        }
    }

    /// Called after the lines that are older than the lost ones.
    fn report_losses(&mut self) {
        let lost = self.counters.lost.load(Relaxed);
        if lost > self.reported && self.write(&(self.notice)(lost - self.reported)) {
            self.reported = lost;
        }
    }

    fn write(&mut self, line: &[u8]) -> bool {
        // After a torn line, the next one starts on a new line.
        if self.torn {
            self.torn = self.out.write_all(b"\n").is_err();
        }
        let mut rest = line;
        while !self.torn && !rest.is_empty() {
            match self.out.write(rest) {
                Ok(written) if written > 0 => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => {
                    self.torn = rest.len() < line.len();
                    return false;
                }
            }
        }
        rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::OpenOptions,
        io::{BufRead as _, BufReader, pipe},
    };

    use super::*;

    const TIME_LIMIT: Duration = Duration::from_secs(20);

    fn start(out: impl Write + Send + 'static) -> Sink {
        Sink::start(out, |lost| format!("lost {lost}\n").into_bytes()).unwrap()
    }

    #[test]
    fn a_full_pipe_loses_lines_without_blocking_and_their_number_is_logged() {
        let (reader, writer) = pipe().unwrap();
        let sink = start(writer);
        let sent = 5_000;
        for _ in 0..sent {
            sink.line(format!("{}\n", "x".repeat(99)).into_bytes());
        }
        let lost = sink.lost();
        assert!(lost > 0 && !sink.flush(Duration::ZERO));

        let mut read = 0;
        let mut lines = BufReader::new(reader).lines();
        for line in lines.by_ref() {
            let line = line.unwrap();
            if let Some(said) = line.strip_prefix("lost ") {
                assert_eq!(said.parse(), Ok(lost));
                break;
            }
            read += 1;
        }
        assert_eq!(read + lost, sent);
        sink.line(b"again\n".to_vec());
        assert!(sink.flush(TIME_LIMIT));
        assert_eq!(lines.next().unwrap().unwrap(), "again");
        assert_eq!(sink.lost(), lost);
    }

    #[test]
    fn lines_that_a_full_disk_refuses_count_as_lost() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let sink = start(full);
        for _ in 0..3 {
            sink.line(b"x\n".to_vec());
        }
        assert!(sink.flush(TIME_LIMIT));
        assert_eq!(sink.lost(), 3);
    }

    #[test]
    fn a_closed_pipe_does_not_block_a_flush() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let sink = start(writer);
        sink.line(b"x\n".to_vec());
        assert!(sink.flush(TIME_LIMIT));
    }

    /// Takes three bytes, fails once, then takes all.
    struct Flaky {
        calls: u32,
        out: io::PipeWriter,
    }

    impl Write for Flaky {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            match self.calls {
                1 => self.out.write(&bytes[..3]),
                2 => Err(io::ErrorKind::StorageFull.into()),
                _ => self.out.write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_line_after_a_torn_line_starts_on_a_new_line() {
        let (reader, out) = pipe().unwrap();
        let sink = start(Flaky { calls: 0, out });
        sink.line(b"first\n".to_vec());
        assert!(sink.flush(TIME_LIMIT));
        sink.line(b"second\n".to_vec());
        assert!(sink.flush(TIME_LIMIT));
        drop(sink);
        let lines: Vec<_> = BufReader::new(reader).lines().map(Result::unwrap).collect();
        assert_eq!(lines, ["fir", "lost 1", "second"]);
    }
}
