//! Judging one worker's samples: what it holds, how it grows, and when to look again.
//!
//! Cheap looks show resident and anonymous pages. What a worker holds privately is only in
//! `smaps_rollup`, which is dear; so the last exact figure is moved on by the anonymous growth
//! since.

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

/// What is known of one worker's memory.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Memory {
    measure: Measure,
    last: Option<Sample>,
    /// The last exact look, with the cheap figures read beside it.
    exact: Option<(Sample, Exact)>,
    peak: Bytes,
    baseline: Option<Bytes>,
    growth: Growth,
    strikes: u32,
    look_at: Timestamp,
    exact_asked: bool,
}

impl Memory {
    pub(super) const fn new(measure: Measure, now: Timestamp) -> Self {
        Self {
            measure,
            last: None,
            exact: None,
            peak: Bytes::ZERO,
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
            self.take_exact(sample);
            return;
        }
        self.take_exact(sample);
        self.last = Some(sample);
        let value = self.value();
        self.peak = self.peak.max(value);
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

    fn take_exact(&mut self, sample: Sample) {
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
            return Some(Look::Exact);
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
            (Measure::Cgroup, _) => last.cgroup.unwrap_or(last.rss),
            (Measure::Private, Some((then, exact))) => moved_on(exact.private, then, last),
            (Measure::Pss, Some((then, exact))) => moved_on(exact.pss, then, last),
            (Measure::Private | Measure::Pss, None) => last.anon,
        }
    }

    /// Private memory, whatever counts against the ceiling.
    pub(super) fn private(&self) -> Bytes {
        let last = self.last.unwrap_or_default();
        match self.exact {
            Some((then, exact)) => moved_on(exact.private, then, last),
            None => last.anon,
        }
    }

    /// Anonymous memory that others have as well: pages of a fork that nobody has written to since.
    pub(super) fn shared(&self) -> Bytes {
        let last = self.last.unwrap_or_default();
        last.anon.minus(self.private())
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

    /// The last figures as they were read.
    pub(super) const fn last(&self) -> Option<Sample> {
        self.last
    }

    /// How many processes it was when it was last looked at.
    pub(super) fn processes(&self) -> u32 {
        self.last.map_or(1, |last| last.processes)
    }

    /// What is held privately but charged to another group (touched before the worker was moved
    /// into its own), by the last exact look.
    pub(super) fn charged_elsewhere(&self) -> Option<Bytes> {
        let (_, exact) = self.exact?;
        Some(exact.private.minus(exact.charged?))
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
            cgroup: last.cgroup,
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
        let moved = Bytes(last.anon.get().abs_diff(then.anon.get()));
        let far = moved > ceiling.scaled(0.15);
        // Shared mappings that nobody shares (mmap(2), MAP_SHARED) are private, but no anonymous
        // pages: only the resident ones tell of them.
        let resident = Bytes(last.rss.get().abs_diff(then.rss.get()));
        if resident.minus(moved) > ceiling.scaled(0.15) {
            return true;
        }
        let near = self.value() > ceiling.scaled(0.8);
        (far && self.value() > ceiling.scaled(0.5))
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
mod tests {
    use super::*;

    const CEILING: Option<Bytes> = Some(Bytes::mib(300));

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_nanos(millis * 1_000_000)
    }

    fn cheap(millis: u64, anon_mib: u64) -> Sample {
        Sample {
            at: at(millis),
            rss: Bytes::mib(anon_mib + 20),
            anon: Bytes::mib(anon_mib),
            processes: 1,
            ..Sample::default()
        }
    }

    fn exact(millis: u64, anon_mib: u64, private_mib: u64) -> Sample {
        let private = Bytes::mib(private_mib);
        let exact = Exact {
            private,
            pss: private,
            charged: None,
            took: Duration::from_millis(1),
        };
        Sample {
            exact: Some(exact),
            ..cheap(millis, anon_mib)
        }
    }

    fn fed(samples: &[Sample]) -> Memory {
        let mut memory = Memory::new(Measure::Private, at(0));
        for sample in samples {
            memory.on_sample(*sample, CEILING);
        }
        memory
    }

    #[test]
    fn the_exact_figure_moves_on_with_the_anonymous_pages() {
        assert_eq!(
            fed(&[exact(0, 50, 30), cheap(100, 60)]).value(),
            Bytes::mib(40)
        );
        assert_eq!(
            fed(&[exact(0, 50, 30), cheap(100, 45)]).value(),
            Bytes::mib(25)
        );
    }

    #[test]
    fn an_upper_bound_alone_is_no_strike() {
        let mut memory = fed(&[cheap(0, 400)]);
        assert_eq!(memory.strikes(), 0);
        assert_eq!(memory.poll_look(at(1000), CEILING), Some(Look::Exact));
        memory.on_sample(exact(1001, 400, 310), CEILING);
        assert_eq!(memory.strikes(), 1);
    }

    #[test]
    fn strikes_count_looks_in_a_row() {
        assert_eq!(
            fed(&[exact(0, 300, 310), cheap(1, 301), cheap(2, 302)]).strikes(),
            3
        );
        assert_eq!(
            fed(&[exact(0, 300, 310), cheap(1, 100), cheap(2, 302)]).strikes(),
            1
        );
    }

    #[test]
    fn a_steady_leak_has_its_slope_and_its_forecast() {
        let samples: Vec<_> = (0..10)
            .map(|i| exact(i * 1000, 100 + i * 10, 100 + i * 10))
            .collect();
        let memory = fed(&samples);
        let mib_per_second = memory.slope().unwrap() / Bytes::mib(1).as_f64();
        assert!((mib_per_second - 10.0).abs() < 0.01, "{mib_per_second}");
        let left = memory.time_to(Bytes::mib(300)).unwrap().as_secs_f64();
        assert!((left - 11.0).abs() < 0.1, "{left}");
    }

    #[test]
    fn looks_come_closer_as_the_ceiling_does() {
        let far = fed(&[exact(0, 100, 100), cheap(1000, 101)]);
        assert_eq!(far.look_at(), at(2000));
        let near = fed(&[exact(0, 250, 250), cheap(1000, 270), cheap(2000, 290)]);
        let spacing = near.look_at().since(at(2000));
        assert!(spacing <= Duration::from_millis(130), "{spacing:?}");
        let runaway = fed(&[exact(0, 100, 100), cheap(100, 290)]);
        assert!(runaway.look_at().since(at(100)) <= Duration::from_millis(2));
    }

    #[test]
    fn after_a_fork_an_exact_look_decides() {
        let forked = Sample {
            processes: 2,
            ..cheap(400, 400)
        };
        let mut memory = fed(&[exact(0, 200, 180), forked]);
        assert_eq!(memory.strikes(), 0);
        assert_eq!(memory.poll_look(at(2000), CEILING), Some(Look::Exact));
        memory.on_sample(
            Sample {
                processes: 2,
                ..exact(2001, 400, 190)
            },
            CEILING,
        );
        assert_eq!((memory.value(), memory.strikes()), (Bytes::mib(190), 0));
    }

    #[test]
    fn mappings_that_nobody_shares_are_found_by_an_exact_look() {
        let mapped = |millis: u64, mib: u64| Sample {
            rss: Bytes::mib(70 + mib),
            ..cheap(millis, 50)
        };
        let mut memory = fed(&[exact(0, 50, 30), mapped(1000, 10)]);
        assert_eq!(memory.poll_look(at(2000), CEILING), Some(Look::Cheap));
        memory.on_sample(mapped(2000, 80), CEILING);
        assert_eq!(memory.poll_look(at(3000), CEILING), Some(Look::Exact));
    }

    #[test]
    fn a_late_exact_look_does_not_turn_time_back() {
        let memory = fed(&[exact(0, 50, 30), cheap(100, 60), exact(50, 55, 35)]);
        assert_eq!(memory.value(), Bytes::mib(40));
        assert_eq!(memory.last().unwrap().at, at(100));
    }

    #[test]
    fn what_was_touched_before_the_move_is_found() {
        let mut sample = exact(0, 50, 30);
        sample.exact = sample.exact.map(|e| Exact {
            charged: Some(Bytes::mib(22)),
            ..e
        });
        assert_eq!(fed(&[sample]).charged_elsewhere(), Some(Bytes::mib(8)));
    }
}
