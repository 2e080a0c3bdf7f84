//! Compares a memory report with the right answer of its app.

use serde_json::Value;

use super::app::App;

/// The judgement of a report about an app.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub verdict: String,
    /// Whether the verdict is one of the right ones.
    pub is_right: bool,
    /// The first suspect, counted from 1, that names a right line or a right holder.
    pub rank: Option<usize>,
    /// Whether the first suspect names a right line.
    pub is_first: bool,
    /// What to do.
    pub advice: String,
    /// Bytes by which the process has grown.
    pub growth: u64,
    /// The part of the growth that the report explains.
    pub explained: f64,
    /// The places of the first suspects, shown when the test fails.
    pub suspects: Vec<String>,
}

impl Answer {
    /// Judges the report of an app.
    pub(crate) fn to(app: &App, report: &Value) -> Self {
        let verdict = text(&report["verdict"]);
        let suspects = report["suspects"].as_array().map_or(&[][..], Vec::as_slice);
        Self {
            is_right: app.verdicts.contains(&verdict),
            verdict,
            rank: suspects
                .iter()
                .position(|suspect| is_named(app, suspect))
                .map(|at| at + 1),
            is_first: suspects.first().is_some_and(|top| names_line(app, top)),
            advice: text(&report["next"]),
            growth: report["process"]["growth"].as_u64().unwrap_or(0),
            explained: report["explained"].as_f64().unwrap_or(0.0),
            suspects: suspects.iter().take(3).map(shown).collect(),
        }
    }
}

/// Whether a suspect names a right line or a right holder.
fn is_named(app: &App, suspect: &Value) -> bool {
    let holder = text(&suspect["holder"]);
    names_line(app, suspect) || app.holders.iter().any(|right| is_within(&holder, right))
}

fn names_line(app: &App, suspect: &Value) -> bool {
    let place = text(&suspect["where"]);
    let line = place.rsplit_once(':').and_then(|(path, line)| {
        let file = path.rsplit('/').next()?.to_owned();
        Some((file, line.parse().ok()?))
    });
    line.is_some_and(|line| app.lines.contains(&line))
}

/// Whether the holder is `right` or a part of it: `shop.Order['lines']` is a part of `shop.Order`.
fn is_within(holder: &str, right: &str) -> bool {
    holder
        .strip_prefix(right)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', '(']))
}

fn shown(suspect: &Value) -> String {
    format!(
        "{} in {}",
        text(&suspect["where"]),
        text(&suspect["holder"])
    )
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

#[test]
fn attributes_and_items_are_within_their_holder() {
    assert!(is_within("shop.Order", "shop.Order"));
    assert!(is_within("shop.Order.lines", "shop.Order"));
    assert!(is_within("shop.Order['lines']", "shop.Order"));
    assert!(!is_within("shop.Orders", "shop.Order"));
    assert!(!is_within("shop", "shop.Order"));
}
