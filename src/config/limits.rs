//! Whether the limits on memory fit each other: ceiling, cap and budget do not cross.

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

/// Complains about limits that cross where the service may have `available`: one in bytes, the
/// other in percent.
pub fn judge(spec: &Spec, available: Bytes) -> Result<(), ConfigError> {
    let complaints = crossings(&spec.memory, Some(available))
        .iter()
        .map(|crossing| Origin::Default.complain(crossing.low, crossing.says(Some(available))))
        .collect();
    ConfigError::from_all(complaints).map_or(Ok(()), Err)
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
