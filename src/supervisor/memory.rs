//! Judging one worker's samples: what it holds, how it grows, and when to look again.
//!
//! Cheap looks show resident, anonymous and shared pages. What a worker holds privately is only in
//! `smaps_rollup` and `smaps`, which are dear; so the last exact figure is moved on by the
//! anonymous growth since.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    action::Look,
    event::{Exact, Sample},
    growth::{Growth, SLOPE_WINDOW},
    report::MemoryView,
    spec::Measure,
};
use crate::units::{Bytes, Timestamp};

/// Looks are never further apart than this, so that a sudden runaway is seen.
const SPACING_MAX: Duration = Duration::from_secs(1);
/// A young process is looked at this often for each second of its life, so that a short one is seen
/// at all.
const LOOKS_WHILE_YOUNG: u32 = 8;
/// Looks are never closer than this: a look at a tree of one process takes about 10 us.
const SPACING_MIN: Duration = Duration::from_micros(500);
/// Exact looks take at most this part of the time: one that took 6 ms is not repeated for 300 ms.
const EXACT_SHARE: u32 = 50;
/// Exact looks may be off by this part of the ceiling.
const EXACT_WITHIN: f64 = 0.05;
/// Cheap figures that have moved by this part of the ceiling since the last exact look are far from
/// it.
const FAR: f64 = 0.15;

/// What is known of one worker's memory.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Memory {
    measure: Measure,
    /// Its processes share memory with one another and with no others: it is a whole program, and
    /// no fork of a server.
    #[serde(default)]
    whole: bool,
    last: Option<Sample>,
    /// What its group was last charged with and the kernel cannot take back.
    #[serde(default)]
    held: Option<Bytes>,
    /// The last exact look, with the cheap figures read beside it.
    exact: Option<(Sample, Exact)>,
    peak: Bytes,
    /// The most resident pages of files that it was seen with.
    #[serde(default)]
    files: Bytes,
    baseline: Option<Bytes>,
    growth: Growth,
    strikes: u32,
    look_at: Timestamp,
    exact_asked: bool,
}

impl Memory {
    pub(super) const fn new(measure: Measure, whole: bool, now: Timestamp) -> Self {
        Self {
            measure,
            whole,
            last: None,
            held: None,
            exact: None,
            peak: Bytes::ZERO,
            files: Bytes::ZERO,
            baseline: None,
            growth: Growth::new(),
            strikes: 0,
            look_at: now,
            exact_asked: false,
        }
    }

    /// Takes a sample in. `ceiling` is what it is held against.
    pub(super) fn on_sample(&mut self, sample: Sample, ceiling: Option<Bytes>) {
        if self.last.is_some_and(|last| sample.at < last.at) {
            // An exact look takes its time in another thread, and cheap ones overtake it. Its
            // figures are still the best there are; only the order of points must hold.
            self.take_figures(sample);
            return;
        }
        self.take_figures(sample);
        self.last = Some(sample);
        let value = self.value();
        // A process that has just forked counts twice until the next exact look.
        if self.exact.is_none() || self.is_sure() {
            self.peak = self.peak.max(value);
        }
        self.growth.note(sample.at, value);
        self.strikes = match ceiling {
            Some(ceiling) if self.is_sure() && value >= ceiling => self.strikes.saturating_add(1),
            _ => 0,
        };
        let spacing = self.spacing(ceiling);
        self.look_at = if spacing < SPACING_MAX {
            sample.at.later(spacing)
        } else {
            sample.at.next_multiple(SPACING_MAX)
        };
    }

    fn take_figures(&mut self, sample: Sample) {
        let files = sample.rss.minus(sample.anon).minus(sample.shmem);
        self.files = self.files.max(files);
        self.held = sample.held.or(self.held);
        if let Some(exact) = sample.exact {
            self.exact_asked = false;
            // The first exact figure replaces an estimate that knew nothing: the jump is no growth.
            if self.exact.is_none() && !matches!(self.measure, Measure::Rss | Measure::Cgroup) {
                self.growth.forget();
                self.peak = Bytes::ZERO;
            }
            self.exact = Some((sample, exact));
        }
    }

    /// How closely to look now, if it is time. The answer is remembered as asked.
    pub(super) fn poll_look(&mut self, now: Timestamp, ceiling: Option<Bytes>) -> Option<Look> {
        if now < self.look_at {
            return None;
        }
        self.look_at = now.later(SPACING_MAX);
        if self.wants_exact(now, ceiling) {
            self.exact_asked = true;
            let rss = self.last.map_or(Bytes::ZERO, |last| last.rss);
            let within = ceiling.unwrap_or(rss).scaled(EXACT_WITHIN);
            return Some(Look::Exact { within });
        }
        Some(Look::Cheap)
    }

    /// The next look is due at once.
    pub(super) const fn look_now(&mut self, now: Timestamp) {
        self.look_at = now;
    }

    /// A look did not work: the next one may be exact again.
    pub(super) const fn on_look_failed(&mut self) {
        self.exact_asked = false;
    }

    /// Another supervisor looks from now on.
    pub(super) const fn on_taken_over(&mut self, now: Timestamp, measure: Measure) {
        self.measure = measure;
        self.exact_asked = false;
        self.look_at = now;
    }

    /// What was over the ceiling while it booted does not count.
    pub(super) const fn forget_strikes(&mut self) {
        self.strikes = 0;
    }

    /// From now on growth counts from here.
    pub(super) fn set_baseline(&mut self) {
        self.baseline = Some(self.value());
    }

    /// It gave memory back at this moment: the ceiling is judged anew by the next look.
    pub(super) fn on_freed(&mut self, now: Timestamp) {
        self.strikes = 0;
        self.growth.forget();
        self.look_at = now;
    }

    /// What it held after warm-up.
    pub(super) const fn baseline(&self) -> Option<Bytes> {
        self.baseline
    }

    /// When the next look is due.
    pub(super) const fn look_at(&self) -> Timestamp {
        self.look_at
    }

    /// So many looks in a row were over the ceiling.
    pub(super) const fn strikes(&self) -> u32 {
        self.strikes
    }

    /// What counts against the ceiling.
    pub(super) fn value(&self) -> Bytes {
        let Some(last) = self.last else {
            return Bytes::ZERO;
        };
        match (self.measure, self.exact) {
            (Measure::Rss, _) => last.rss,
            (Measure::Cgroup, _) => self.held.unwrap_or(last.rss),
            (Measure::Private, Some((then, exact))) => moved_on(self.own(exact), then, last),
            (Measure::Pss, Some((then, exact))) => moved_on(exact.pss, then, last),
            (Measure::Private | Measure::Pss, None) => last.anon,
        }
    }

    /// Private memory, whichever measure is compared with the ceiling.
    pub(super) fn private(&self) -> Bytes {
        let last = self.last.unwrap_or_default();
        match self.exact {
            Some((then, exact)) => moved_on(self.own(exact), then, last),
            None => last.anon,
        }
    }

    /// What its end would give back. Pages that only processes of one worker share are private to
    /// none of them.
    fn own(&self, exact: Exact) -> Bytes {
        let share = exact.share.filter(|_| self.whole);
        share.unwrap_or(exact.private)
    }

    /// Anonymous memory shared with other processes: pages of a fork that neither side has written
    /// to since.
    pub(super) fn shared(&self) -> Bytes {
        let last = self.last.unwrap_or_default();
        last.anon.minus(self.private())
    }

    /// What its group was last charged with and the kernel cannot take back.
    pub(super) const fn held(&self) -> Option<Bytes> {
        self.held
    }

    /// The value rests on what was seen, not only on an upper bound. A fork shares its pages with
    /// its parent and both count them as anonymous: after one the last exact figure cannot be moved
    /// on.
    pub(super) fn is_sure(&self) -> bool {
        match (self.measure, self.exact, self.last) {
            (Measure::Rss | Measure::Cgroup, _, last) => last.is_some(),
            (Measure::Private | Measure::Pss, Some((then, _)), Some(last)) => {
                then.processes == last.processes
            }
            (Measure::Private | Measure::Pss, _, _) => false,
        }
    }

    /// The highest value so far.
    pub(super) const fn peak(&self) -> Bytes {
        self.peak
    }

    /// The highest value, taking into account `resident`, the highest that its resident pages ever
    /// were: looks may miss the peak of a short life. Its pages of files, as far as looks have seen
    /// them, do not count.
    pub(super) fn peak_of(&self, resident: Bytes) -> Bytes {
        let files = match self.measure {
            Measure::Rss => Bytes::ZERO,
            Measure::Private | Measure::Pss | Measure::Cgroup => self.files,
        };
        self.peak.max(resident.minus(files))
    }

    /// The last figures as they were read.
    pub(super) const fn last(&self) -> Option<Sample> {
        self.last
    }

    /// Number of its processes at the last look.
    pub(super) fn processes(&self) -> u32 {
        self.last.map_or(1, |last| last.processes)
    }

    /// Its own anonymous pages that are charged to another group (touched before the worker was
    /// moved into its own), by the last exact look. Nothing else counts: swap and huge pages are
    /// not held by a group's limit, and pages of files are charged to whoever read them first.
    pub(super) fn charged_elsewhere(&self) -> Option<Bytes> {
        let (_, exact) = self.exact?;
        Some(exact.anon.minus(exact.charged?))
    }

    /// Growth in bytes a second, as far as that can be told.
    pub(super) fn slope(&self) -> Option<f64> {
        self.growth.slope()
    }

    /// It still grows: a leak, not the price of warming up.
    pub(super) fn still_grows(&self) -> bool {
        self.growth.goes_on()
    }

    /// How long until `limit` at the present slope; zero when it is passed, `None` when it is not
    /// being approached.
    pub(super) fn time_to(&self, limit: Bytes) -> Option<Duration> {
        let room = limit.minus(self.value());
        if room == Bytes::ZERO {
            return Some(Duration::ZERO);
        }
        let slope = self.slope().filter(|slope| *slope > 1.0)?;
        Duration::try_from_secs_f64(room.as_f64() / slope).ok()
    }

    pub(super) fn view(&self, ceiling: Option<Bytes>) -> MemoryView {
        let last = self.last.unwrap_or_default();
        MemoryView {
            private: self.private(),
            rss: last.rss,
            pss: self
                .exact
                .map(|(then, exact)| moved_on(exact.pss, then, last)),
            cgroup: self.held,
            peak: self.peak,
            baseline: self.baseline,
            slope_bps: self.slope(),
            to_ceiling: ceiling.and_then(|ceiling| self.time_to(ceiling)),
        }
    }

    /// A quarter of the way to the ceiling at the worst slope seen lately, within bounds.
    fn spacing(&self, ceiling: Option<Bytes>) -> Duration {
        let lived = self
            .last
            .map_or(Duration::ZERO, |last| self.growth.lasts_until(last.at));
        let widest = if lived < SPACING_MAX {
            SPACING_MAX / LOOKS_WHILE_YOUNG
        } else {
            SPACING_MAX
        };
        let Some(ceiling) = ceiling else {
            return widest;
        };
        let value = if self.is_sure() {
            self.value()
        } else {
            self.last.unwrap_or_default().rss
        };
        let room = ceiling.minus(value);
        if room == Bytes::ZERO {
            // Over it: strikes are counted, or it drains; either way a tenth of a second will do.
            return SPACING_MAX / 10;
        }
        let worst = self.growth.recent();
        if worst <= 1.0 {
            return widest;
        }
        Duration::try_from_secs_f64(room.as_f64() / worst / 4.0)
            .unwrap_or(widest)
            .clamp(SPACING_MIN, widest)
    }

    /// An exact look is worth its cost: there is none yet, or the estimate has moved far from it
    /// near the ceiling.
    fn wants_exact(&self, now: Timestamp, ceiling: Option<Bytes>) -> bool {
        if self.exact_asked {
            return false;
        }
        let (Some((then, exact)), Some(last)) = (self.exact, self.last) else {
            return self.last.is_some();
        };
        let age = now.since(then.at);
        if age < exact.took.saturating_mul(EXACT_SHARE).max(SPACING_MAX / 4) {
            return false;
        }
        if then.processes != last.processes {
            return true;
        }
        let Some(ceiling) = ceiling else {
            return age > SLOPE_WINDOW * 2;
        };
        let far = ceiling.scaled(FAR);
        let apart = |one: Bytes, other: Bytes| Bytes(one.get().abs_diff(other.get()));
        let moved = apart(last.anon, then.anon);
        // What counts besides anonymous pages: shared memory without a name, or a share of all that
        // is resident. A worker that only maps files costs no exact looks.
        let others = match self.measure {
            Measure::Private => apart(last.shmem, then.shmem),
            Measure::Pss => apart(last.rss, then.rss).minus(moved),
            Measure::Rss | Measure::Cgroup => Bytes::ZERO,
        };
        if others > far {
            return true;
        }
        let near = self.value() > ceiling.scaled(0.8);
        (moved > far && self.value() > ceiling.scaled(0.5))
            || (near && age > Duration::from_secs(10))
            || age > SLOPE_WINDOW * 2
    }
}

/// An exact figure, moved on by the anonymous pages that came or went since.
fn moved_on(exact: Bytes, then: Sample, now: Sample) -> Bytes {
    exact
        .plus(now.anon.minus(then.anon))
        .minus(then.anon.minus(now.anon))
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
