//! Checks the memory limits: a ceiling must not be above its cap, a cap must not be above the
//! budget, and no limit may be too small.

use crate::{
    supervisor::spec::{Limit, MemorySpec, Spec},
    units::{Bytes, Size},
};

use super::{
    diagnostic::ConfigError,
    settings::{Origin, Settings},
};

/// A limit that is above another one but must not be.
#[derive(Debug)]
struct Crossing {
    low: &'static str,
    low_size: Size,
    high: &'static str,
    high_size: Size,
}

/// Records errors for limits that contradict each other on every machine. [`judge`] finds the
/// others.
pub(super) fn check(memory: &MemorySpec, settings: &mut Settings) {
    // A default that contradicts a setting is not the user's error.
    let is_set = |key: &str| settings.origin(key) != Origin::Default;
    let mut crossings = crossings(memory, None);
    crossings.retain(|it| is_set(it.low) && is_set(it.high));
    for crossing in crossings {
        settings.error_of_both(crossing.low, crossing.high, crossing.message(None));
    }
}

/// Checks limits with `available` memory: a limit in bytes may contradict one in percent, or a
/// percentage may be too small.
pub fn judge(spec: &Spec, available: Bytes) -> Result<(), ConfigError> {
    // A pool itself keeps its cap below its budget.
    let crossings = match spec.pool {
        Some(_) => Vec::new(),
        None => crossings(&spec.memory, Some(available)),
    };
    let crossing = crossings
        .iter()
        .map(|crossing| (crossing.low, crossing.message(Some(available))));
    let diagnostics = too_small(&spec.memory, available)
        .into_iter()
        .map(|(name, text)| (name.key(), text))
        .chain(crossing)
        .map(|(key, text)| Origin::Default.error(key, text))
        .collect();
    ConfigError::from_all(diagnostics).map_or(Ok(()), Err)
}

/// One of the three limits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LimitName {
    /// The limit of a worker above which it is recycled.
    Ceiling,
    /// The limit of a worker that the kernel enforces.
    Cap,
    /// The limit of all workers together.
    Budget,
}

impl LimitName {
    /// The key in a file.
    const fn key(self) -> &'static str {
        match self {
            Self::Ceiling => "memory.ceiling",
            Self::Cap => "memory.cap",
            Self::Budget => "memory.budget",
        }
    }

    /// The flag on the command line.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Ceiling => "--ceiling",
            Self::Cap => "--cap",
            Self::Budget => "--budget",
        }
    }
}

/// The limits that are too small with `available` memory, each with the reason.
pub fn too_small(memory: &MemorySpec, available: Bytes) -> Vec<(LimitName, String)> {
    let limits = [
        (LimitName::Ceiling, memory.ceiling),
        (LimitName::Cap, memory.cap),
        (LimitName::Budget, memory.budget),
    ];
    limits
        .into_iter()
        .filter_map(|(name, limit)| match limit {
            Limit::At(size) => size.too_small(available).map(|why| (name, why)),
            Limit::Auto | Limit::Off => None,
        })
        .collect()
}

fn crossings(memory: &MemorySpec, available: Option<Bytes>) -> Vec<Crossing> {
    let ceiling = ("memory.ceiling", memory.ceiling);
    let cap = ("memory.cap", memory.cap);
    let budget = ("memory.budget", memory.budget);
    let mut pairs = vec![(ceiling, cap), (cap, budget)];
    if !matches!(memory.cap, Limit::At(_)) {
        pairs.push((ceiling, budget));
    }
    pairs
        .into_iter()
        .filter_map(|((low, low_limit), (high, high_limit))| {
            let (Limit::At(low_size), Limit::At(high_size)) = (low_limit, high_limit) else {
                return None;
            };
            is_above(low_size, high_size, available).then_some(Crossing {
                low,
                low_size,
                high,
                high_size,
            })
        })
        .collect()
}

fn is_above(one: Size, other: Size, available: Option<Bytes>) -> bool {
    match (one, other, available) {
        (Size::Bytes(one), Size::Bytes(other), _) => one > other,
        (Size::Percent(one), Size::Percent(other), _) => one > other,
        (one, other, Some(available)) => one.of(available) > other.of(available),
        (_, _, None) => false,
    }
}

impl Crossing {
    fn message(&self, available: Option<Bytes>) -> String {
        let shown = |size: Size| match (size, available) {
            (Size::Percent(_), Some(all)) => format!("{size} of {all} ({})", size.of(all)),
            _ => size.to_string(),
        };
        format!(
            "{} {} is above {} {}; lower the first or raise the second",
            self.low,
            shown(self.low_size),
            self.high,
            shown(self.high_size)
        )
    }
}
