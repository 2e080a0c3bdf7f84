//! One worker's samples: what the worker holds, how it grows, and when to sample it again.
//!
//! A cheap sample shows resident, anonymous and shared pages. Private memory is only in
//! `smaps_rollup` and `smaps`, which are expensive to read. So private memory is estimated: the
//! last exact figure plus the growth of anonymous pages since then.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::supervisor::{
    action::SampleKind,
    input::{Exact, Sample},
    snapshot::MemoryView,
    spec::Measure,
    worker::growth::{Growth, SLOPE_WINDOW},
};
use crate::units::{Bytes, Timestamp};

/// Samples are at most this far apart, so that sudden growth is seen.
const SPACING_MAX: Duration = Duration::from_secs(1);
/// Samples in the first second of a process, so that a process that lives only briefly is sampled
/// at all.
const SAMPLES_WHILE_YOUNG: u32 = 8;
/// Samples are at least this far apart. A cheap sample of a single process takes about 10 us.
const SPACING_MIN: Duration = Duration::from_micros(500);
/// Exact samples take at most one part in this many of the time: after one that took 6 ms, the next
/// comes at least 300 ms later.
const EXACT_SHARE: u32 = 50;
/// Exact samples may be off by this part of the ceiling.
const EXACT_WITHIN: f64 = 0.05;
/// If cheap figures have changed by this part of the ceiling since the last exact sample, the
/// estimate is no longer good enough.
const FAR: f64 = 0.15;
/// The figures of a sample may be older than its timestamp by this, in a worker that the kernel is
/// about to kill.
const NOTICED_LATE: Duration = Duration::from_millis(100);

/// One worker's memory, as its samples show it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Memory {
    measure: Measure,
    /// The worker is a whole program and not a fork of a server: its processes share memory only
    /// with one another.
    #[serde(default)]
    whole: bool,
    last: Option<Sample>,
    /// The last charge of its cgroup, without what the kernel can reclaim.
    #[serde(default)]
    held: Option<Bytes>,
    /// The last exact figures, with the cheap ones of the same sample.
    exact: Option<(Sample, Exact)>,
    peak: Bytes,
    /// The most resident file pages in any sample.
    #[serde(default)]
    files: Bytes,
    baseline: Option<Bytes>,
    growth: Growth,
    samples_over: u32,
    #[serde(rename = "look_at")]
    sample_at: Timestamp,
    exact_asked: bool,
}

impl Memory {
    pub(crate) const fn new(measure: Measure, whole: bool, now: Timestamp) -> Self {
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
            samples_over: 0,
            sample_at: now,
            exact_asked: false,
        }
    }

    /// Takes in a sample, and compares it with `ceiling`.
    pub(crate) fn on_sample(&mut self, sample: Sample, ceiling: Option<Bytes>) {
        if self.last.is_some_and(|last| sample.at < last.at) {
            // An exact sample is taken in another thread, and later cheap ones may arrive before
            // it. Its figures are still the best ones, but its point would break the order of time.
            self.take_figures(sample);
            return;
        }
        self.take_figures(sample);
        self.last = Some(sample);
        let value = self.value();
        // The memory of a process that has just forked counts twice until the next exact sample.
        if self.exact.is_none() || self.is_sure() {
            self.peak = self.peak.max(value);
        }
        self.growth.note(sample.at, value);
        self.samples_over = match ceiling {
            Some(ceiling) if self.is_sure() && value >= ceiling => {
                self.samples_over.saturating_add(1)
            }
            _ => 0,
        };
        let spacing = self.spacing(ceiling);
        self.sample_at = if spacing < SPACING_MAX {
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
            // The first exact figure replaces a rough estimate. The difference is not growth.
            if self.exact.is_none() && !matches!(self.measure, Measure::Rss | Measure::Cgroup) {
                self.growth.forget();
                self.peak = Bytes::ZERO;
            }
            self.exact = Some((sample, exact));
        }
    }

    /// Which sample to take now, if one is due. The sample counts as requested.
    pub(crate) fn poll_sample(
        &mut self,
        now: Timestamp,
        ceiling: Option<Bytes>,
    ) -> Option<SampleKind> {
        if now < self.sample_at {
            return None;
        }
        self.sample_at = now.later(SPACING_MAX);
        if self.wants_exact(now, ceiling) {
            self.exact_asked = true;
            let rss = self.last.map_or(Bytes::ZERO, |last| last.rss);
            let within = ceiling.unwrap_or(rss).scaled(EXACT_WITHIN);
            return Some(SampleKind::Exact { within });
        }
        Some(SampleKind::Cheap)
    }

    /// The next sample is due at once.
    pub(crate) const fn sample_now(&mut self, now: Timestamp) {
        self.sample_at = now;
    }

    /// A sample has failed. The next one may be exact again.
    pub(crate) const fn on_sample_failed(&mut self) {
        self.exact_asked = false;
    }

    /// A new supervisor took over, and takes the samples from now on.
    pub(crate) const fn on_taken_over(&mut self, now: Timestamp, measure: Measure) {
        self.measure = measure;
        self.exact_asked = false;
        self.sample_at = now;
    }

    /// Samples over the ceiling while the worker booted do not count.
    pub(crate) const fn forget_samples_over(&mut self) {
        self.samples_over = 0;
    }

    /// From now on growth is measured from the current memory.
    pub(crate) fn set_baseline(&mut self) {
        self.baseline = Some(self.value());
    }

    /// The worker has just freed memory. The next sample is compared with the ceiling as if it were
    /// the first.
    pub(crate) fn on_freed(&mut self, now: Timestamp) {
        self.samples_over = 0;
        self.growth.forget();
        self.sample_at = now;
    }

    /// Its memory when it became ready, or later when its warm-up was over.
    pub(crate) const fn baseline(&self) -> Option<Bytes> {
        self.baseline
    }

    /// When the next sample is due.
    pub(crate) const fn sample_at(&self) -> Timestamp {
        self.sample_at
    }

    /// Consecutive samples over the ceiling.
    pub(crate) const fn samples_over(&self) -> u32 {
        self.samples_over
    }

    /// The figure that is compared with the ceiling.
    pub(crate) fn value(&self) -> Bytes {
        let Some(last) = self.last else {
            return Bytes::ZERO;
        };
        match (self.measure, self.exact) {
            (Measure::Rss, _) => last.rss,
            (Measure::Cgroup, _) => self.held.unwrap_or(last.rss),
            (Measure::Private, Some((then, exact))) => estimate(self.own(exact), then, last),
            (Measure::Pss, Some((then, exact))) => estimate(exact.pss, then, last),
            (Measure::Private | Measure::Pss, None) => last.anon,
        }
    }

    /// Private memory, whichever measure is compared with the ceiling.
    pub(crate) fn private(&self) -> Bytes {
        let last = self.last.unwrap_or_default();
        match self.exact {
            Some((then, exact)) => estimate(self.own(exact), then, last),
            None => last.anon,
        }
    }

    /// Its private memory at `now`, if it has grown as fast as just before the last sample.
    pub(crate) fn private_by(&self, now: Timestamp) -> Bytes {
        let last = self.last.map_or(Timestamp::ZERO, |last| last.at);
        let elapsed = now.since(last).saturating_add(NOTICED_LATE);
        self.private().plus(self.growth.expected_within(elapsed))
    }

    /// The memory that the end of the worker would free. Pages that only processes of one worker
    /// share belong to it, although they are private to none of these processes.
    fn own(&self, exact: Exact) -> Bytes {
        let share = exact.share.filter(|_| self.whole);
        share.unwrap_or(exact.private)
    }

    /// Anonymous memory shared with other processes: pages of a fork that neither side has written
    /// to since.
    pub(crate) fn shared(&self) -> Bytes {
        let last = self.last.unwrap_or_default();
        last.anon.minus(self.private())
    }

    /// The last charge of its cgroup, without what the kernel can reclaim.
    pub(crate) const fn held(&self) -> Option<Bytes> {
        self.held
    }

    /// The value is a measurement or a good estimate, and not only an upper bound. A fork shares
    /// its pages with its parent, and both count them as anonymous. So there is no good estimate
    /// between a fork and the next exact sample.
    pub(crate) fn is_sure(&self) -> bool {
        match (self.measure, self.exact, self.last) {
            (Measure::Rss | Measure::Cgroup, _, last) => last.is_some(),
            (Measure::Private | Measure::Pss, Some((then, _)), Some(last)) => {
                then.processes == last.processes
            }
            (Measure::Private | Measure::Pss, _, _) => false,
        }
    }

    /// The highest value so far.
    pub(crate) const fn peak(&self) -> Bytes {
        self.peak
    }

    /// The highest value. Samples may miss the peak of a process that lived only briefly, so
    /// `resident` is taken into account, the kernel's peak of resident pages. File pages, as far as
    /// they were sampled, do not count.
    pub(crate) fn peak_of(&self, resident: Bytes) -> Bytes {
        let files = match self.measure {
            Measure::Rss => Bytes::ZERO,
            Measure::Private | Measure::Pss | Measure::Cgroup => self.files,
        };
        self.peak.max(resident.minus(files))
    }

    pub(crate) const fn last(&self) -> Option<Sample> {
        self.last
    }

    /// Number of its processes in the last sample.
    pub(crate) fn processes(&self) -> u32 {
        self.last.map_or(1, |last| last.processes)
    }

    /// Its own anonymous pages that are charged to another cgroup, by the last exact sample. The
    /// worker touched them before it was moved into its own cgroup. Nothing else counts: a cgroup's
    /// limit does not cover swap and huge pages, and file pages are charged to the process that
    /// read them first.
    pub(crate) fn charged_elsewhere(&self) -> Option<Bytes> {
        let (_, exact) = self.exact?;
        Some(exact.anon.minus(exact.charged?))
    }

    /// Growth in bytes per second. `None`: there are too few samples.
    pub(crate) fn slope(&self) -> Option<f64> {
        self.growth.slope()
    }

    /// How much it grows within this time at the current slope.
    pub(crate) fn growth_within(&self, time: Duration) -> Bytes {
        let slope = self.slope().unwrap_or(0.0);
        Bytes::mib(1).scaled(slope * time.as_secs_f64() / Bytes::mib(1).as_f64())
    }

    /// It still grows, so its growth is a leak and not its warm-up.
    pub(crate) fn still_grows(&self) -> bool {
        self.growth.goes_on()
    }

    /// How long until it reaches `limit` at the current slope. Zero: it has passed the limit.
    /// `None`: it does not approach the limit.
    pub(crate) fn time_to(&self, limit: Bytes) -> Option<Duration> {
        let room = limit.minus(self.value());
        if room == Bytes::ZERO {
            return Some(Duration::ZERO);
        }
        let slope = self.slope().filter(|slope| *slope > 1.0)?;
        Duration::try_from_secs_f64(room.as_f64() / slope).ok()
    }

    pub(crate) fn view(&self, ceiling: Option<Bytes>) -> MemoryView {
        let last = self.last.unwrap_or_default();
        MemoryView {
            private: self.private(),
            rss: last.rss,
            pss: self
                .exact
                .map(|(then, exact)| estimate(exact.pss, then, last)),
            cgroup: self.held,
            peak: self.peak,
            baseline: self.baseline,
            slope_bps: self.slope(),
            to_ceiling: ceiling.and_then(|ceiling| self.time_to(ceiling)),
        }
    }

    /// The time to the next sample: a quarter of the time to the ceiling at the steepest recent
    /// growth, within bounds.
    fn spacing(&self, ceiling: Option<Bytes>) -> Duration {
        let lived = self
            .last
            .map_or(Duration::ZERO, |last| self.growth.lasts_until(last.at));
        let widest = if lived < SPACING_MAX {
            SPACING_MAX / SAMPLES_WHILE_YOUNG
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
            // It is over its ceiling: consecutive samples are counted, or it drains. A tenth of a
            // second is close enough for both.
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

    /// Whether an exact sample is worth its cost: there is none yet, or the estimate has moved far
    /// away from it near the ceiling.
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
        // Other pages also count: unnamed shared memory for private memory, and a share of all
        // resident pages for PSS. A worker that only maps files causes no exact samples.
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

/// An exact figure, plus or minus the change in anonymous pages since.
fn estimate(exact: Bytes, then: Sample, now: Sample) -> Bytes {
    exact
        .plus(now.anon.minus(then.anon))
        .minus(then.anon.minus(now.anon))
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
