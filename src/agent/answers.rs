//! What an agent's answer says.

use serde_json::{Value, json};

use crate::{supervisor::event::Said, units::Bytes};

/// A process with less than this part of its worker's memory says little about the worker.
const OWN_SHARE: f64 = 0.5;
/// Maximum letters of a worker's own text in an event.
const TEXT_MAX: usize = 400;

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
        return Said::Failed(short(why.unwrap_or("its agent could not")));
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

/// Scales a report to the whole worker: one process made it, and `explained` is a part of the
/// growth of that process. It says nothing about the memory of the worker's other processes.
pub(super) fn hold_against_worker(report: &mut Value) {
    let is_tree = report["process"]["processes"].as_u64() > Some(1);
    let whole = report["process"]["private"].as_u64();
    let own = report["private"].as_u64();
    let (Some(own), Some(whole), true) = (own, whole, is_tree) else {
        return;
    };
    let share = Bytes(own).as_f64() / Bytes(whole).as_f64();
    if share >= OWN_SHARE {
        return;
    }
    let explained = report["explained"].as_f64().unwrap_or(0.0) * share;
    report["explained"] = json!((explained * 1e3).round() / 1e3);
    report["verdict"] = json!("mixed");
    let (own, whole) = (Bytes(own), Bytes(whole));
    report["next"] = json!(format!(
        "the process that was asked holds {own} of {whole}: the rest is in its child processes, \
         which this report does not look into"
    ));
    let note = format!("the process that was asked holds {own} of {whole}");
    match report["missing"].as_array_mut() {
        Some(missing) => missing.push(json!(note)),
        None => report["missing"] = json!([note]),
    }
}

/// Cuts a worker's text: a thousand events are kept, each with its text.
fn short(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// A report in one line: verdict, how much of the growth, and the first suspect.
pub(super) fn summary(report: &Value) -> String {
    let text = |value: &Value, name: &str| {
        let text = value.get(name).and_then(Value::as_str);
        text.map(short).filter(|text| !text.is_empty())
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
        let endless = json!({"do": "open", "ok": false, "error": "é".repeat(1 << 16)});
        let Said::Failed(why) = read(&endless) else {
            panic!("it failed");
        };
        assert_eq!(why.chars().count(), TEXT_MAX + 1);
        assert_eq!(report(&json!({"ok": true, "report": 7})), None);
    }

    #[test]
    fn one_process_explains_only_what_it_grew_by_itself() {
        let tree = |own: u64, processes: u32| {
            let mut report = json!({
                "verdict": "freed", "explained": 1.0, "missing": [],
                "next": "118 MB are free inside the allocator",
                "private": own << 20,
                "process": {
                    "growth": 118_u64 << 20, "private": 200_u64 << 20, "processes": processes,
                },
            });
            hold_against_worker(&mut report);
            report
        };
        let report = tree(20, 6);
        assert_eq!(summary(&report), "mixed, 11.8M of 118M explained");
        assert!(report["next"].as_str().unwrap().contains("child processes"));
        assert!(
            report["missing"][0]
                .as_str()
                .unwrap()
                .contains("20M of 200M")
        );
        let whole = "freed, 118M of 118M explained";
        assert_eq!(summary(&tree(150, 6)), whole);
        assert_eq!(summary(&tree(20, 1)), whole);
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
