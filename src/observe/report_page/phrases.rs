//! Phrases for the parts of a report.

use std::time::{Duration, UNIX_EPOCH};

use crate::units::Bytes;

use super::document::{Figure, Grew, Report, Route, Suspect};

pub(super) use crate::observe::text_layout::cut;

/// Maximum characters of one link of a chain.
const LINK: usize = 48;
/// Separates the links of a chain.
const ARROW: &str = " -> ";
/// Maximum links shown of a chain.
const LINKS: usize = 24;
/// Routes with a smaller share of the growth are not shown.
const ROUTE_SHARE_MIN: f64 = 0.05;

/// `/cart: 51K for each request, 12M and 96% of the growth (certain)`. `None`: its part is small.
pub(super) fn route(route: &Route) -> Option<String> {
    let share = positive(route.share).filter(|share| *share >= ROUTE_SHARE_MIN)?;
    let certain = match route.certain.0 {
        Some(true) => "certain",
        Some(false) | None => "not certain",
    };
    Some(format!(
        "{}: {} for each request, {} and {:.0}% of the growth of the service ({certain})",
        route.route.text()?,
        bytes(positive(route.per_request)?),
        bytes(positive(route.growth_bytes)?),
        share * 100.0
    ))
}

/// `w7 (pid 4242), ceiling, 2025-09-05T12:00:00Z`.
pub(super) fn subject(report: &Report) -> String {
    let mut who = report.worker.text().unwrap_or("a worker").to_owned();
    if let Some(pid) = report.pid.text() {
        who.push_str(&format!(" (pid {pid})"));
    }
    let at = report
        .at
        .0
        .and_then(|at| Duration::try_from_secs_f64(at).ok());
    let at = at.and_then(|at| UNIX_EPOCH.checked_add(at));
    // Later years than 9999 have no such form.
    let at = at.filter(|at| {
        at.duration_since(UNIX_EPOCH)
            .is_ok_and(|since| since.as_secs() < 253_402_300_800)
    });
    let at = at.map(|at| humantime::format_rfc3339_seconds(at).to_string());
    let more = report.cause.text().map(str::to_owned).into_iter().chain(at);
    std::iter::once(who)
        .chain(more)
        .collect::<Vec<_>>()
        .join(", ")
}

/// `301M private (312M resident), 211M after warm-up, grew by 90M`.
pub(super) fn figures(report: &Report) -> String {
    let process = &report.process.0;
    let mut said = Vec::new();
    if let Some(private) = process.private.0 {
        let rss =
            (process.rss.0).map_or_else(String::new, |rss| format!(" ({} resident)", bytes(rss)));
        said.push(format!("{} private{rss}", bytes(private)));
    }
    if let Some(baseline) = process.baseline.0 {
        said.push(format!("{} after warm-up", bytes(baseline)));
    }
    if let Some(growth) = growth(report) {
        said.push(format!("grew by {}", bytes(growth)));
    }
    if said.is_empty() {
        said.push("no figures".to_owned());
    }
    said.join(", ")
}

/// The verdict, and how much of the growth it explains.
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
        "unknown" => "not known, because the objects were not counted".to_owned(),
        "" => {
            return "none: the worker did not answer, these figures were measured from outside"
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

/// The worker's growth since its warm-up.
pub(super) fn growth(report: &Report) -> Option<f64> {
    let process = &report.process.0;
    let since = || Some(process.private.0? - process.baseline.0?);
    process.growth.0.or_else(since)
}

/// The advice for a report that has none.
pub(super) fn next(verdict: &str) -> &'static str {
    match verdict {
        "python" => "look at the first suspect, and limit the size of what holds it",
        "native" => {
            "look for allocations outside Python: numpy, images, drivers, C extensions; \
             recycling by memory limits them meanwhile"
        }
        "garbage" => {
            "break the cycles, or let gc run (gc.enable, gc.freeze after start instead of gc.disable)"
        }
        "freed" => {
            "nothing leaks: lower the peak, or set MALLOC_ARENA_MAX=2 or \
             MALLOC_TRIM_THRESHOLD_, or preload jemalloc"
        }
        "mixed" => "begin with the largest part below",
        _ => "ask again with `supervise report WORKER` while a worker's memory is high",
    }
}

/// `python 81M, native 5M`; parts below one byte are left out.
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
    match (suspect.place.text(), suspect.function.text()) {
        (None, None) => None,
        (Some(place), None) => Some(place.to_owned()),
        (None, Some(function)) => Some(function.to_owned()),
        (Some(place), Some(function)) => Some(format!("{place} {function}")),
    }
}

/// `12,400 dict`.
pub(super) fn things(suspect: &Suspect) -> String {
    let kind = suspect.kind.text();
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

/// The links in order; links in the middle are left out if the line is too short.
pub(super) fn chain(links: &[String], room: usize) -> String {
    let links: Vec<_> = links.iter().map(|link| cut(link, LINK)).collect();
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

/// A figure that is known and above zero.
pub(super) fn positive(figure: Figure) -> Option<f64> {
    figure.0.filter(|value| *value > 0.0)
}
