//! The parts of a report in words.

use crate::units::Bytes;

use super::document::{Figure, Grew, List, Report, Suspect, Text};

pub(super) use crate::observe::paper::cut;

/// A link of a chain is no longer, in letters.
const LINK: usize = 48;
/// Between the links of a chain.
const ARROW: &str = " -> ";
/// Of a chain, no more links are shown.
const LINKS: usize = 24;

/// What it is, and how much of the growth that explains.
pub(super) fn verdict(report: &Report) -> String {
    let parts = match parts(&report.grew.0) {
        parts if parts.is_empty() => String::new(),
        parts => format!(" ({parts})"),
    };
    let what = match report.verdict.0.as_str() {
        "python" => "live Python objects".to_owned(),
        "native" => "memory outside Python's allocators".to_owned(),
        "garbage" => "cycles that gc had not collected".to_owned(),
        "freed" => "free in the allocator, not returned to the system".to_owned(),
        "mixed" => format!("several things at once{parts}"),
        "" => {
            return "none: nothing was said from inside, this is how it looks from outside"
                .to_owned();
        }
        other => other.to_owned(),
    };
    let Some(part) = report.explained.0.map(|part| part.clamp(0.0, 1.0)) else {
        return what;
    };
    match growth(report) {
        Some(growth) if growth > 0.0 => {
            let (explained, growth) = (bytes(growth * part), bytes(growth));
            format!("{what}: {explained} of {growth} growth explained")
        }
        _ => format!("{what}: {:.0}% explained", part * 100.0),
    }
}

/// What it grew by since its warm-up.
pub(super) fn growth(report: &Report) -> Option<f64> {
    let process = &report.process.0;
    let since = || Some(process.private.0? - process.baseline.0?);
    process.growth.0.or_else(since)
}

/// What to do where the report does not say it.
pub(super) fn next(verdict: &str) -> &'static str {
    match verdict {
        "python" => "look at the first suspect and bound what holds it",
        "native" => {
            "look at what allocates outside Python: numpy, images, drivers, C extensions; \
             recycling by memory bounds it meanwhile"
        }
        "garbage" => {
            "break the cycles, or let gc run (gc.enable, gc.freeze after start instead of gc.disable)"
        }
        "freed" => {
            "nothing leaks: lower the peak, or set MALLOC_ARENA_MAX=2 or \
             MALLOC_TRIM_THRESHOLD_, or preload jemalloc"
        }
        "mixed" => "begin with the greatest of the parts below",
        _ => "ask again with `supervise report WORKER` while a worker is fat",
    }
}

/// `python 81M, native 5M`; what is nothing is left out.
pub(super) fn parts(grew: &Grew) -> String {
    let all = [
        ("python", grew.python),
        ("native", grew.native),
        ("garbage", grew.garbage),
        ("freed", grew.freed),
    ];
    let parts = all.into_iter().filter_map(|(name, size)| {
        let size = size.0.filter(|size| size.abs() >= 1.0)?;
        Some(format!("{name} {}", bytes(size)))
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// `app.py:42 remember`.
pub(super) fn place(suspect: &Suspect) -> Option<String> {
    match (suspect.place.said(), suspect.function.said()) {
        (None, None) => None,
        (Some(place), None) => Some(place.to_owned()),
        (None, Some(function)) => Some(function.to_owned()),
        (Some(place), Some(function)) => Some(format!("{place} {function}")),
    }
}

/// `12,400 dict`.
pub(super) fn things(suspect: &Suspect) -> String {
    let kind = suspect.kind.said();
    match suspect.count.0 {
        Some(count) => format!("{} {}", grouped(count), kind.unwrap_or("objects")),
        None => kind.unwrap_or("memory").to_owned(),
    }
}

/// `+79M` of growth, else `81M` in all.
pub(super) fn size(suspect: &Suspect) -> String {
    match (suspect.growth_bytes.0, suspect.bytes.0) {
        (Some(growth), _) if growth < 0.0 => bytes(growth),
        (Some(growth), _) => format!("+{}", bytes(growth)),
        (None, Some(all)) => bytes(all),
        (None, None) => "-".to_owned(),
    }
}

/// Links in their order, the middle left out where there is no room for all.
pub(super) fn chain(links: &List<Text>, room: usize) -> String {
    let links: Vec<_> = links.0.iter().map(|link| cut(&link.0, LINK)).collect();
    let fits = |text: &String| text.chars().count() <= room;
    if links.len() <= LINKS {
        let whole = links.join(ARROW);
        if fits(&whole) {
            return whole;
        }
    }
    for kept in (2..links.len().min(LINKS)).rev() {
        let (front, back) = (kept.div_ceil(2), kept / 2);
        let left_out = format!("({} more)", links.len() - kept);
        let (before, after) = (&links[..front], &links[links.len() - back..]);
        let all = before.iter().chain([&left_out]).chain(after);
        let text = all.map(String::as_str).collect::<Vec<_>>().join(ARROW);
        if fits(&text) {
            return text;
        }
    }
    cut(&links.join(ARROW), room)
}

/// `-3M`, `81M`.
pub(super) fn bytes(size: f64) -> String {
    let sign = if size <= -1.0 { "-" } else { "" };
    format!("{sign}{}", Bytes(1).scaled(size.abs()))
}

/// `12,400`.
pub(super) fn grouped(count: f64) -> String {
    let digits = format!("{:.0}", count.abs());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if count < 0.0 {
        format!("-{text}")
    } else {
        text
    }
}

/// A figure that is there and not nothing.
pub(super) fn some(figure: Figure) -> Option<f64> {
    figure.0.filter(|value| *value > 0.0)
}
