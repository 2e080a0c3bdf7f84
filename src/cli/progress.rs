//! Shows the progress of a pool: a bar on a terminal, otherwise one line per minute.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read, Seek as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use memchr::memchr_iter;

use super::{console::Console, map_files::seek_back};
use crate::{
    driver::pool::{Observer, Progress},
    queue::{self, SeqSet},
    units::Signal,
};

const BAR_INTERVAL: Duration = Duration::from_millis(200);
const LINE_INTERVAL: Duration = Duration::from_secs(60);
/// The weight of the newest rate. The rate on a bar is smoothed, so that it does not flicker.
const NEWEST_WEIGHT: f64 = 0.2;

/// An input that counts the bytes and lines that are read.
#[derive(Debug)]
pub(super) struct Input {
    file: File,
    /// The offset at which reading began; `None` for a pipe.
    start: Option<u64>,
    position: Position,
}

/// The amount of an input that was read.
#[derive(Clone, Debug, Default)]
pub(super) struct Position {
    bytes: Arc<AtomicU64>,
    lines: Arc<AtomicU64>,
    /// The size in bytes; `None` for a pipe.
    total: Option<u64>,
    /// Lines that earlier runs have done.
    done: Arc<SeqSet>,
}

impl Input {
    pub(super) fn new(mut file: File, done: Arc<SeqSet>) -> Self {
        let regular = file.metadata().ok().filter(|it| it.is_file());
        let position = Position {
            total: regular.map(|it| it.len()).filter(|length| *length > 0),
            done,
            ..Position::default()
        };
        let start = file.stream_position().ok();
        Self {
            file,
            start,
            position,
        }
    }

    pub(super) fn position(&self) -> Position {
        self.position.clone()
    }
}

impl Read for Input {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(into)?;
        let lines = memchr_iter(b'\n', into.get(..count).unwrap_or_default()).count();
        let position = &self.position;
        position.bytes.fetch_add(count as u64, Ordering::Relaxed);
        position.lines.fetch_add(lines as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl queue::Input for Input {
    fn rewind(&mut self) -> io::Result<bool> {
        let rewound = seek_back(&mut self.file, self.start)?;
        if rewound {
            self.position.bytes.store(0, Ordering::Relaxed);
            self.position.lines.store(0, Ordering::Relaxed);
        }
        Ok(rewound)
    }
}

impl Position {
    /// The share of the input that is done after `ended` tasks, from 0 to 1. This assumes that the
    /// lines that were read are equally long.
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    fn share(&self, ended: u64) -> Option<f64> {
        let total = self.total?;
        let bytes = self.bytes.load(Ordering::Relaxed);
        let lines = self.lines.load(Ordering::Relaxed);
        let done = ended + self.done.count_to(lines);
        let read = bytes as f64 / total as f64;
        Some((read * done as f64 / lines.max(1) as f64).min(1.0))
    }
}

/// Writes the messages, the progress and the task output of a pool to standard error.
#[derive(Debug)]
pub(super) struct ProgressDisplay {
    position: Position,
    console: Console,
    has_bar: bool,
    /// The time between two updates. `None`: progress is not shown.
    interval: Option<Duration>,
    /// Tasks per second.
    rate: Option<f64>,
    /// Ended tasks and elapsed time when the rate was updated.
    last_update: (u64, Duration),
    /// Whether progress was shown.
    shown: bool,
}

impl ProgressDisplay {
    pub(super) fn new(position: Position) -> io::Result<Self> {
        let bar = io::stderr().is_terminal().then(|| {
            let template = match position.total {
                Some(_) => "{bar:24} {percent:>3}%  {msg}",
                None => "{spinner} {msg}",
            };
            // An invalid template is a bug, but the run must not fail because of it.
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            ProgressBar::new(1000).with_style(style)
        });
        let interval = if bar.is_some() {
            BAR_INTERVAL
        } else {
            LINE_INTERVAL
        };
        Self::start(position, bar, Some(interval))
    }

    /// Shows messages and the output of tasks, but no progress: that is left to the program that
    /// uses the executor.
    pub(super) fn quiet() -> io::Result<Self> {
        Self::start(Position::default(), None, None)
    }

    fn start(
        position: Position,
        bar: Option<ProgressBar>,
        interval: Option<Duration>,
    ) -> io::Result<Self> {
        let has_bar = bar.is_some();
        Ok(Self {
            position,
            console: Console::start(io::stderr(), bar, io::stderr().is_terminal())?,
            has_bar,
            interval,
            rate: None,
            last_update: (0, Duration::ZERO),
            shown: false,
        })
    }

    fn update_rate(&mut self, now: &Progress) {
        let ended = now.done + now.failed;
        let (ended_before, elapsed_before) = self.last_update;
        let time = now.elapsed.saturating_sub(elapsed_before).as_secs_f64();
        if time <= 0.0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let newest = ended.saturating_sub(ended_before) as f64 / time;
        let smooth = self.rate.filter(|_| self.has_bar);
        self.rate = Some(smooth.map_or(newest, |rate| rate + (newest - rate) * NEWEST_WEIGHT));
        self.last_update = (ended, now.elapsed);
    }

    fn summary(&self, now: &Progress) -> String {
        let mut text = format!(
            "{} done, {} failed, {}/s, {}",
            grouped(now.done),
            grouped(now.failed),
            rounded(self.rate.unwrap_or_default()),
            now.memory
        );
        if let Some(share) = self.position.share(now.done + now.failed)
            && share > 0.0
        {
            let left = now.elapsed.mul_f64((1.0 - share) / share);
            text += &format!(", {} left", seconds(left));
        }
        text
    }
}

impl Observer for ProgressDisplay {
    fn say(&self, line: &str) {
        self.console.say(line);
    }

    fn print(&mut self, lines: &[u8]) {
        self.console.print(lines);
    }

    fn has_room(&self) -> bool {
        self.console.has_room()
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.console.poll_room(cx)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.console.poll_finish(cx)
    }

    fn stopping(&self, by: Signal, tasks: usize) {
        // A client that shuts its executor down (SIGTERM) needs no message.
        let is_needed = self.interval.is_some() || by == Signal::INT;
        if tasks > 0 && is_needed {
            self.console.say(&format!(
                "finishing the running tasks: {tasks}; press Ctrl-C again to stop now"
            ));
        }
    }

    fn interval(&self) -> Option<Duration> {
        self.interval
    }

    fn show(&mut self, now: &Progress) {
        self.update_rate(now);
        let text = self.summary(now);
        self.shown = true;
        if self.has_bar {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share from 0 to 1"
            )]
            let position = (self
                .position
                .share(now.done + now.failed)
                .unwrap_or_default()
                * 1000.0) as u64;
            self.console.show_bar(position, text);
        } else {
            self.console.say(&text);
        }
    }

    fn finish(&mut self, now: &Progress) {
        self.console.clear_bar();
        if now.abandoned > 0 {
            self.console.say(&format!(
                "tasks stopped without a result: {}",
                grouped(now.abandoned)
            ));
        }
        if self.shown {
            self.console.say(&format!(
                "{} done, {} failed in {}",
                grouped(now.done),
                grouped(now.failed),
                seconds(now.elapsed)
            ));
        }
    }
}

/// A time in whole seconds, because smaller units would flicker.
fn seconds(time: Duration) -> String {
    let whole = Duration::from_secs(time.as_secs());
    humantime::format_duration(whole).to_string()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is not negative, and fits"
)]
fn rounded(rate: f64) -> String {
    if rate < 10.0 {
        format!("{rate:.1}")
    } else {
        grouped(rate.round() as u64)
    }
}

/// `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bytes;

    fn at(seconds: u64, done: u64) -> Progress {
        Progress {
            done,
            failed: 2,
            abandoned: 0,
            memory: Bytes(300 << 20),
            elapsed: Duration::from_secs(seconds),
        }
    }

    fn display(bytes: u64, lines: u64, total: Option<u64>) -> ProgressDisplay {
        ProgressDisplay {
            position: Position {
                bytes: Arc::new(AtomicU64::new(bytes)),
                lines: Arc::new(AtomicU64::new(lines)),
                total,
                done: Arc::default(),
            },
            console: Console::start(io::sink(), None, false).unwrap(),
            has_bar: false,
            interval: None,
            rate: None,
            last_update: (0, Duration::ZERO),
            shown: false,
        }
    }

    #[test]
    fn a_line_has_the_rate_of_its_minute_and_the_time_left() {
        let mut shown = display(500, 3_600_000, Some(1000));
        shown.update_rate(&at(60, 1_199_998));
        shown.update_rate(&at(120, 1_800_000 - 2));
        let text = shown.summary(&at(120, 1_799_998));
        assert_eq!(text, "1,799,998 done, 2 failed, 10,000/s, 300M, 6m left");
    }

    #[test]
    fn the_time_left_is_omitted_for_a_pipe() {
        let mut shown = display(250, 60, None);
        shown.update_rate(&at(60, 58));
        assert_eq!(shown.summary(&at(60, 58)), "58 done, 2 failed, 1.0/s, 300M");
    }

    #[test]
    fn lines_of_earlier_runs_count_as_done() {
        let mut done = SeqSet::default();
        for line in 1..=50 {
            done.insert(line);
        }
        let mut position = display(500, 100, Some(1000)).position;
        assert_eq!(position.share(50), Some(0.25));
        position.done = Arc::new(done);
        assert_eq!(position.share(50), Some(0.5));
    }

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
