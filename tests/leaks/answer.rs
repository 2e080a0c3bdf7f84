//! What a report says, beside what is right.

use serde_json::Value;

use super::app::App;

/// What a report says of an app.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Its verdict.
    pub verdict: String,
    /// Whether that is one of the right ones.
    pub is_right: bool,
    /// The first suspect, from 1, that names a right line or a right holder.
    pub rank: Option<usize>,
    /// Bytes by which the process has grown.
    pub growth: u64,
    /// How much of that the verdict explains.
    pub explained: f64,
    /// Where the first suspects are, for the reader of a failure.
    pub suspects: Vec<String>,
}

impl Answer {
    /// Judges `report`.
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
            growth: report["process"]["growth"].as_u64().unwrap_or(0),
            explained: report["explained"].as_f64().unwrap_or(0.0),
            suspects: suspects.iter().take(3).map(shown).collect(),
        }
    }
}

/// Whether a suspect names a right line or a right holder.
fn is_named(app: &App, suspect: &Value) -> bool {
    let place = text(&suspect["where"]);
    let line = place.rsplit_once(':').and_then(|(path, line)| {
        let file = path.rsplit('/').next()?.to_owned();
        Some((file, line.parse().ok()?))
    });
    let holder = text(&suspect["holder"]);
    line.is_some_and(|line| app.lines.contains(&line))
        || app.holders.iter().any(|right| is_within(&holder, right))
}

/// `shop.Order` holds what `shop.Order.lines` and `shop.Order['lines']` hold.
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
fn what_is_within_a_holder_is_its_own() {
    assert!(is_within("shop.Order", "shop.Order"));
    assert!(is_within("shop.Order.lines", "shop.Order"));
    assert!(is_within("shop.Order['lines']", "shop.Order"));
    assert!(!is_within("shop.Orders", "shop.Order"));
    assert!(!is_within("shop", "shop.Order"));
}
