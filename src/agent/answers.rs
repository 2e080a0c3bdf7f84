//! What an agent's answer says.

use serde_json::Value;

use crate::{supervisor::event::Said, units::Bytes};

/// The report in an answer, if it is one and it could be made.
pub(super) fn report(answer: &Value) -> Option<Value> {
    let report = answer.get("report").filter(|_| is_ok(answer))?;
    report.is_object().then(|| report.clone())
}

/// Any other answer.
pub(super) fn read(answer: &Value) -> Said {
    let number = |name: &str| answer.get(name).and_then(Value::as_u64);
    if !is_ok(answer) {
        let why = answer.get("error").and_then(Value::as_str);
        return Said::Failed(why.unwrap_or("its agent could not").to_owned());
    }
    match answer.get("do").and_then(Value::as_str) {
        Some("gc") => Said::Collected {
            before: Bytes(number("private_before").unwrap_or(0)),
            after: Bytes(number("private_after").unwrap_or(0)),
        },
        Some("open") => Said::Opened,
        Some("close") => Said::Closed,
        _ => Said::Failed("its agent's answer is not understood".to_owned()),
    }
}

fn is_ok(answer: &Value) -> bool {
    answer.get("ok").and_then(Value::as_bool) == Some(true)
}

/// A report in one line: verdict, how much of the growth, and the first suspect.
pub(super) fn summary(report: &Value) -> String {
    let text = |value: &Value, name: &str| {
        let text = value.get(name).and_then(Value::as_str);
        text.map(str::to_owned).filter(|text| !text.is_empty())
    };
    let verdict = text(report, "verdict").unwrap_or_else(|| "unknown".to_owned());
    let growth = report["process"]["growth"].as_u64();
    let mut line = match (growth, report["explained"].as_f64()) {
        (Some(growth), Some(part)) if part > 0.0 => {
            let growth = Bytes(growth);
            format!("{verdict}, {} of {growth} explained", growth.scaled(part))
        }
        (Some(growth), _) => format!("{verdict}, {} grown", Bytes(growth)),
        (None, _) => verdict,
    };
    let first = report["suspects"].get(0);
    if let Some(first) = first {
        let (place, holder) = (text(first, "where"), text(first, "holder"));
        let function = text(first, "function").map(|name| format!(" in {name}"));
        let place = place.map(|place| format!("{place}{}", function.unwrap_or_default()));
        let names: Vec<String> = holder.into_iter().chain(place).collect();
        if !names.is_empty() {
            line.push_str("; ");
            line.push_str(&names.join(", "));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_are_what_they_say() {
        let gc = json!({"id": 1, "do": "gc", "ok": true, "collected": 9,
                        "private_before": 100, "private_after": 40});
        let collected = Said::Collected {
            before: Bytes(100),
            after: Bytes(40),
        };
        assert_eq!(read(&gc), collected);
        assert_eq!(read(&json!({"do": "open", "ok": true})), Said::Opened);
        let failed = json!({"do": "open", "ok": false, "error": "no room"});
        assert_eq!(read(&failed), Said::Failed("no room".to_owned()));
        assert!(matches!(read(&json!({})), Said::Failed(_)));
        assert_eq!(report(&json!({"ok": true, "report": 7})), None);
    }

    #[test]
    fn a_summary_names_the_verdict_and_the_first_suspect() {
        let report = json!({
            "verdict": "python", "explained": 0.9,
            "process": {"growth": 94_371_840_u64},
            "suspects": [{"where": "shop.py:9", "function": "buy", "holder": "shop.SEEN"}],
        });
        let expected = "python, 81M of 90M explained; shop.SEEN, shop.py:9 in buy";
        assert_eq!(summary(&report), expected);
        assert_eq!(summary(&json!({"verdict": "native"})), "native");
    }
}
