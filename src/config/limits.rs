//! Whether the limits on memory make sense: ceiling, cap and budget do not cross, and none is so
//! small that nothing can live in it.

use crate::{
    supervisor::spec::{Limit, MemorySpec, Spec},
    units::{Bytes, Size},
};

use super::{
    complaint::ConfigError,
    wish::{Book, Origin},
};

/// One limit above another that must not be.
#[derive(Debug)]
struct Crossing {
    low: &'static str,
    low_size: Size,
    high: &'static str,
    high_size: Size,
}

/// Complains about what crosses wherever it runs. What depends on the machine is [`judge`]d there.
pub(super) fn check(memory: &MemorySpec, book: &mut Book) {
    for crossing in crossings(memory, None) {
        book.complain_of_both(crossing.low, crossing.high, crossing.says(None));
    }
}

/// Complains about limits that make no sense where the service may have `available`: they cross,
/// one in bytes and the other in percent, or a percentage of it is next to nothing.
pub fn judge(spec: &Spec, available: Bytes) -> Result<(), ConfigError> {
    let crossings = crossings(&spec.memory, Some(available));
    let crossing = crossings
        .iter()
        .map(|crossing| (crossing.low, crossing.says(Some(available))));
    let complaints = too_small(&spec.memory, available)
        .into_iter()
        .map(|(name, text)| (name.key(), text))
        .chain(crossing)
        .map(|(key, text)| Origin::Default.complain(key, text))
        .collect();
    ConfigError::from_all(complaints).map_or(Ok(()), Err)
}

/// One of the three limits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LimitName {
    /// For each worker, graceful.
    Ceiling,
    /// For each worker, by the kernel.
    Cap,
    /// For all together.
    Budget,
}

impl LimitName {
    /// Its key in a file.
    const fn key(self) -> &'static str {
        match self {
            Self::Ceiling => "memory.ceiling",
            Self::Cap => "memory.cap",
            Self::Budget => "memory.budget",
        }
    }

    /// Its flag on the command line.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Ceiling => "--ceiling",
            Self::Cap => "--cap",
            Self::Budget => "--budget",
        }
    }
}

/// The limits that come out too small where the service may have `available`, each with why.
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
    fn says(&self, available: Option<Bytes>) -> String {
        let shown = |size: Size| match (size, available) {
            (Size::Percent(_), Some(all)) => format!("{size} of {all} ({})", size.of(all)),
            _ => size.to_string(),
        };
        format!(
            "{} {} is above {} {}; lower the one or raise the other",
            self.low,
            shown(self.low_size),
            self.high,
            shown(self.high_size)
        )
    }
}
