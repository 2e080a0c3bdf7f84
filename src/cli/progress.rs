//! What whoever runs a pool sees of it: a bar on a terminal, else a line a minute.

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

use super::{console::Console, map_files::go_back};
use crate::{
    driver::pool::{Onlooker, Standing, finishing},
    queue::{self, Skip},
    units::Signal,
};

const BAR: Duration = Duration::from_millis(200);
const LINE: Duration = Duration::from_secs(60);
/// The weight of the newest rate on a bar, which would flicker else.
const FRESH: f64 = 0.2;

/// An input, and how far it was read.
#[derive(Debug)]
pub(super) struct Input {
    file: File,
    /// Where it was read from; of a pipe nobody knows.
    place: Option<u64>,
    way: Way,
}

/// How far an input was read, of how much.
#[derive(Clone, Debug, Default)]
pub(super) struct Way {
    bytes: Arc<AtomicU64>,
    lines: Arc<AtomicU64>,
    /// Bytes; of a pipe nobody knows.
    total: Option<u64>,
    /// Lines that were done before.
    done: Arc<Skip>,
}

impl Input {
    pub(super) fn new(mut file: File, done: Arc<Skip>) -> Self {
        let regular = file.metadata().ok().filter(|it| it.is_file());
        let way = Way {
            total: regular.map(|it| it.len()).filter(|length| *length > 0),
            done,
            ..Way::default()
        };
        let place = file.stream_position().ok();
        Self { file, place, way }
    }

    pub(super) fn way(&self) -> Way {
        self.way.clone()
    }
}

impl Read for Input {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(into)?;
        let lines = memchr_iter(b'\n', into.get(..count).unwrap_or_default()).count();
        self.way.bytes.fetch_add(count as u64, Ordering::Relaxed);
        self.way.lines.fetch_add(lines as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl queue::Input for Input {
    fn rewind(&mut self) -> io::Result<bool> {
        let is_back = go_back(&mut self.file, self.place)?;
        if is_back {
            self.way.bytes.store(0, Ordering::Relaxed);
            self.way.lines.store(0, Ordering::Relaxed);
        }
        Ok(is_back)
    }
}

impl Way {
    /// What is done of it when so many tasks have ended, from 0 to 1. Of what was read and has not
    /// ended only the number is known.
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

/// Shows how far it is.
#[derive(Debug)]
pub(super) struct Progress {
    way: Way,
    console: Console,
    has_bar: bool,
    /// So often it is shown. `None`: never.
    interval: Option<Duration>,
    /// Tasks a second, and the tasks and the time for which it was taken.
    rate: Option<f64>,
    before: (u64, Duration),
    shown: bool,
}

impl Progress {
    pub(super) fn new(way: Way) -> io::Result<Self> {
        let bar = io::stderr().is_terminal().then(|| {
            let template = match way.total {
                Some(_) => "{bar:24} {percent:>3}%  {msg}",
                None => "{spinner} {msg}",
            };
            // The one that indicatif has is as good as ours, should ours be wrong.
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            ProgressBar::new(1000).with_style(style)
        });
        let interval = if bar.is_some() { BAR } else { LINE };
        Self::start(way, bar, Some(interval))
    }

    /// Says what there is to say, and no more: for an executor, whose client knows how far it is.
    pub(super) fn quiet() -> io::Result<Self> {
        Self::start(Way::default(), None, None)
    }

    fn start(way: Way, bar: Option<ProgressBar>, interval: Option<Duration>) -> io::Result<Self> {
        let has_bar = bar.is_some();
        Ok(Self {
            way,
            console: Console::start(io::stderr(), bar, io::stderr().is_terminal())?,
            has_bar,
            interval,
            rate: None,
            before: (0, Duration::ZERO),
            shown: false,
        })
    }

    fn take_rate(&mut self, now: &Standing) {
        let ended = now.done + now.failed;
        let (before, then) = self.before;
        let time = now.elapsed.saturating_sub(then).as_secs_f64();
        if time <= 0.0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let newest = ended.saturating_sub(before) as f64 / time;
        let smooth = self.rate.filter(|_| self.has_bar);
        self.rate = Some(smooth.map_or(newest, |rate| rate + (newest - rate) * FRESH));
        self.before = (ended, now.elapsed);
    }

    fn words(&self, now: &Standing) -> String {
        let mut words = format!(
            "{} done, {} failed, {}/s, {}",
            grouped(now.done),
            grouped(now.failed),
            rounded(self.rate.unwrap_or_default()),
            now.memory
        );
        if let Some(share) = self.way.share(now.done + now.failed)
            && share > 0.0
        {
            let left = now.elapsed.mul_f64((1.0 - share) / share);
            words += &format!(", {} left", seconds(left));
        }
        words
    }
}

impl Onlooker for Progress {
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
        // A client that shuts its executor down is no news for anybody.
        let is_news = self.interval.is_some() || by == Signal::INT;
        if tasks > 0 && is_news {
            self.console.say(&finishing(tasks));
        }
    }

    fn interval(&self) -> Option<Duration> {
        self.interval
    }

    fn show(&mut self, now: &Standing) {
        self.take_rate(now);
        let words = self.words(now);
        self.shown = true;
        if self.has_bar {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share from 0 to 1"
            )]
            let at = (self.way.share(now.done + now.failed).unwrap_or_default() * 1000.0) as u64;
            self.console.show(at, words);
        } else {
            self.console.say(&words);
        }
    }

    fn finish(&mut self, now: &Standing) {
        self.console.clear_bar();
        if now.cut > 0 {
            self.console.say(&format!(
                "tasks stopped before their end, without a result: {}",
                grouped(now.cut)
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

/// In whole seconds: what is finer flickers.
fn seconds(time: Duration) -> String {
    let whole = Duration::from_secs(time.as_secs());
    humantime::format_duration(whole).to_string()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is no negative number, and fits"
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

    fn at(seconds: u64, done: u64) -> Standing {
        Standing {
            done,
            failed: 2,
            cut: 0,
            memory: Bytes(300 << 20),
            elapsed: Duration::from_secs(seconds),
        }
    }

    fn progress(bytes: u64, lines: u64, total: Option<u64>) -> Progress {
        Progress {
            way: Way {
                bytes: Arc::new(AtomicU64::new(bytes)),
                lines: Arc::new(AtomicU64::new(lines)),
                total,
                done: Arc::default(),
            },
            console: Console::start(io::sink(), None, false).unwrap(),
            has_bar: false,
            interval: None,
            rate: None,
            before: (0, Duration::ZERO),
            shown: false,
        }
    }

    #[test]
    fn a_line_has_the_rate_of_its_minute_and_the_time_left() {
        let mut shown = progress(500, 3_600_000, Some(1000));
        shown.take_rate(&at(60, 1_199_998));
        shown.take_rate(&at(120, 1_800_000 - 2));
        let words = shown.words(&at(120, 1_799_998));
        assert_eq!(words, "1,799,998 done, 2 failed, 10,000/s, 300M, 6m left");
    }

    #[test]
    fn what_nobody_knows_is_not_told() {
        let mut shown = progress(250, 60, None);
        shown.take_rate(&at(60, 58));
        assert_eq!(shown.words(&at(60, 58)), "58 done, 2 failed, 1.0/s, 300M");
    }

    #[test]
    fn what_was_done_before_counts() {
        let mut done = Skip::default();
        for line in 1..=50 {
            done.insert(line);
        }
        let mut way = progress(500, 100, Some(1000)).way;
        assert_eq!(way.share(50), Some(0.25));
        way.done = Arc::new(done);
        assert_eq!(way.share(50), Some(0.5));
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
