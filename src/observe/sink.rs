//! Where log lines go: a bounded queue and one thread that writes it down, so that a reader who
//! stalls or a disk that is full costs lines and never the supervisor's time.

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

/// So many lines wait for a slow reader, about 200 KB.
const WAITING_MAX: usize = 1024;
/// The thread only writes; the default of 2 MiB would be mapped for nothing.
const STACK: usize = 64 << 10;

/// The near end. Clones share one queue.
#[derive(Clone, Debug)]
pub(super) struct Sink {
    /// Unbounded by itself: [`Sink::line`] bounds the lines by `waiting`, so that a flush always
    /// finds room behind them.
    parcels: Sender<Parcel>,
    tally: Arc<Tally>,
}

#[derive(Debug)]
enum Parcel {
    /// A line with its line feed, or a record.
    Line(Vec<u8>),
    /// All before it is written.
    Flush(Sender<()>),
}

#[derive(Debug, Default)]
struct Tally {
    waiting: AtomicUsize,
    lost: AtomicU64,
}

impl Sink {
    /// Writes to `out` from now on. `notice` is the line that says how many were lost.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        notice: impl Fn(u64) -> Vec<u8> + Send + 'static,
    ) -> io::Result<Self> {
        let (parcels, taken) = channel();
        let tally = Arc::new(Tally::default());
        let scribe = Scribe {
            out,
            notice,
            tally: Arc::clone(&tally),
            said: 0,
            torn: false,
        };
        let thread = thread::Builder::new()
            .name("log".to_owned())
            .stack_size(STACK);
        thread.spawn(move || scribe.run(&taken))?;
        Ok(Self { parcels, tally })
    }

    /// Takes a line, or counts it as lost. Never blocks.
    pub(super) fn line(&self, line: Vec<u8>) {
        if self.tally.waiting.fetch_add(1, Relaxed) >= WAITING_MAX
            || self.parcels.send(Parcel::Line(line)).is_err()
        {
            self.tally.waiting.fetch_sub(1, Relaxed);
            self.tally.lost.fetch_add(1, Relaxed);
        }
    }

    /// So many lines were lost since the start.
    pub(super) fn lost(&self) -> u64 {
        self.tally.lost.load(Relaxed)
    }

    /// Waits until all is written, for `patience` at most; whether it was.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let (done, written) = channel();
        self.parcels.send(Parcel::Flush(done)).is_ok() && written.recv_timeout(patience).is_ok()
    }
}

/// The far end, in its thread.
struct Scribe<W, N> {
    out: W,
    notice: N,
    tally: Arc<Tally>,
    /// So many of the lost lines were admitted.
    said: u64,
    /// The last line broke off in the middle.
    torn: bool,
}

impl<W: Write, N: Fn(u64) -> Vec<u8>> Scribe<W, N> {
    /// Ends with the last near end.
    fn run(mut self, parcels: &Receiver<Parcel>) {
        loop {
            let parcel = match parcels.try_recv() {
                Ok(parcel) => parcel,
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {
                    self.admit_losses();
                    let Ok(parcel) = parcels.recv() else { return };
                    parcel
                }
            };
            match parcel {
                Parcel::Line(line) => {
                    self.tally.waiting.fetch_sub(1, Relaxed);
                    if !self.write(&line) {
                        self.tally.lost.fetch_add(1, Relaxed);
                    }
                }
                Parcel::Flush(done) => {
                    self.admit_losses();
                    // Whoever lost patience is not there any more.
                    let _gone = done.send(());
                }
            }
        }
    }

    /// After the lines that were older than the lost ones.
    fn admit_losses(&mut self) {
        let lost = self.tally.lost.load(Relaxed);
        if lost > self.said && self.write(&(self.notice)(lost - self.said)) {
            self.said = lost;
        }
    }

    fn write(&mut self, line: &[u8]) -> bool {
        // What follows a torn line starts on a line of its own.
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

    const PATIENCE: Duration = Duration::from_secs(20);

    fn start(out: impl Write + Send + 'static) -> Sink {
        Sink::start(out, |lost| format!("lost {lost}\n").into_bytes()).unwrap()
    }

    #[test]
    fn a_full_pipe_costs_lines_and_not_time_and_then_says_how_many() {
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
        assert!(sink.flush(PATIENCE));
        assert_eq!(lines.next().unwrap().unwrap(), "again");
        assert_eq!(sink.lost(), lost);
    }

    #[test]
    fn a_full_disk_is_counted() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let sink = start(full);
        for _ in 0..3 {
            sink.line(b"x\n".to_vec());
        }
        assert!(sink.flush(PATIENCE));
        assert_eq!(sink.lost(), 3);
    }

    #[test]
    fn a_reader_who_is_gone_is_no_trouble() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let sink = start(writer);
        sink.line(b"x\n".to_vec());
        assert!(sink.flush(PATIENCE));
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
    fn a_torn_line_does_not_swallow_the_next() {
        let (reader, out) = pipe().unwrap();
        let sink = start(Flaky { calls: 0, out });
        sink.line(b"first\n".to_vec());
        assert!(sink.flush(PATIENCE));
        sink.line(b"second\n".to_vec());
        assert!(sink.flush(PATIENCE));
        drop(sink);
        let lines: Vec<_> = BufReader::new(reader).lines().map(Result::unwrap).collect();
        assert_eq!(lines, ["fir", "lost 1", "second"]);
    }
}
