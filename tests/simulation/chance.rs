//! Random numbers from a seed: the same seed gives the same run on every machine.

use std::time::Duration;

/// splitmix64, by Sebastiano Vigna, public domain.
#[derive(Clone, Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed ^ 0xA076_1D64_78BD_642F)
    }

    pub(crate) const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// From `low` to `high`, both included.
    pub(crate) const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.bits() % (high - low + 1)
    }

    pub(crate) fn small(&mut self, low: u32, high: u32) -> u32 {
        u32::try_from(self.between(u64::from(low), u64::from(high))).unwrap_or(high)
    }

    /// From 0 to below 1.
    pub(crate) fn part(&mut self) -> f64 {
        let upper = u32::try_from(self.bits() >> 32).unwrap_or(0);
        f64::from(upper) / (f64::from(u32::MAX) + 1.0)
    }

    /// Uniform on a logarithmic scale: each power of ten is equally likely.
    pub(crate) fn spread(&mut self, low: f64, high: f64) -> f64 {
        low * (high / low).powf(self.part())
    }

    pub(crate) fn yes(&mut self, likely: f64) -> bool {
        self.part() < likely
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        let last = u64::try_from(of.len()).unwrap_or(1) - 1;
        of[usize::try_from(self.between(0, last)).unwrap_or(0)]
    }

    pub(crate) const fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_micros(self.between(low * 1000, high * 1000))
    }

    pub(crate) const fn micros(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_micros(self.between(low, high))
    }
}
