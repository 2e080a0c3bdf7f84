//! The meaning of an agent's answer.

use serde_json::{Value, json};

use crate::{protocol::question::Content, supervisor::input::AgentAnswer, units::Bytes};

/// A process with less than this part of its worker's memory does not represent the worker.
const OWN_SHARE: f64 = 0.5;
/// Maximum characters of a worker's own text in an event.
const TEXT_MAX: usize = 400;

/// Translates an answer for the decider. A report that was not requested counts as malformed.
pub(super) fn said(content: Content) -> AgentAnswer {
    match content {
        Content::Collected { before, after } => AgentAnswer::Collected {
            before: Bytes(before),
            after: Bytes(after),
        },
        Content::Busy => AgentAnswer::Busy,
        Content::Base { taken } => AgentAnswer::Base { taken },
        Content::Opened => AgentAnswer::Opened,
        Content::Closed => AgentAnswer::Closed,
        Content::Failed(why) => {
            let why = why.unwrap_or_else(|| "its agent failed without a reason".to_owned());
            AgentAnswer::Failed(short(&why))
        }
        Content::Report(_) | Content::NotUnderstood => {
            AgentAnswer::Failed("its agent sent a malformed answer".to_owned())
        }
    }
}

/// Scales a report to the whole worker. One process made it, and `explained` is a part of the
/// growth of that process only. It does not cover the memory of the worker's other processes.
pub(super) fn scale_to_worker(report: &mut Value) {
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
        "the reporting process has {own} of {whole}; the rest is in its child processes, which \
         this report does not cover"
    ));
    let note = format!("the reporting process has {own} of {whole}");
    match report["missing"].as_array_mut() {
        Some(missing) => missing.push(json!(note)),
        None => report["missing"] = json!([note]),
    }
}

/// Truncates a worker's text, because a thousand events are kept, each with its text.
fn short(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// A report in one line: the verdict, the explained part of the growth, and the first suspect.
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
    use crate::protocol::question::Answer;

    fn read(answer: Value) -> AgentAnswer {
        let mut answer = answer;
        answer["id"] = json!(1);
        let answer = Answer::read(answer.to_string().as_bytes()).expect("it has an id");
        said(answer.content)
    }

    #[test]
    fn each_answer_is_translated_by_its_kind() {
        let gc = json!({"do": "gc", "ok": true, "collected": 9,
                        "private_before": 100, "private_after": 40});
        let collected = AgentAnswer::Collected {
            before: Bytes(100),
            after: Bytes(40),
        };
        assert_eq!(read(gc), collected);
        assert_eq!(read(json!({"do": "open", "ok": true})), AgentAnswer::Opened);
        let failed = json!({"do": "open", "ok": false, "error": "no room"});
        assert_eq!(read(failed), AgentAnswer::Failed("no room".to_owned()));
        assert!(matches!(read(json!({})), AgentAnswer::Failed(_)));
        let endless = json!({"do": "open", "ok": false, "error": "é".repeat(1 << 16)});
        let AgentAnswer::Failed(why) = read(endless) else {
            panic!("it failed");
        };
        assert_eq!(why.chars().count(), TEXT_MAX + 1);
        for report in [
            json!({"ok": true, "report": 7}),
            json!({"ok": true, "report": {}}),
        ] {
            assert!(matches!(read(report), AgentAnswer::Failed(_)));
        }
    }

    #[test]
    fn a_report_of_any_shape_has_a_summary() {
        let shapes = [
            json!(null),
            json!(-1),
            json!(1e300),
            json!("é".repeat(999)),
            json!([[]]),
            json!({"0": {}}),
        ];
        for one in &shapes {
            for other in &shapes {
                let mut report = json!({
                    "verdict": one, "explained": other, "private": one, "suspects": other,
                    "missing": one, "next": other,
                    "process": {"processes": 2, "private": 100, "growth": 50},
                });
                scale_to_worker(&mut report);
                assert!(summary(&report).chars().count() < 2000);
                report["suspects"] = json!([{"where": one, "holder": other, "function": one}]);
                report["private"] = json!(u64::MAX);
                scale_to_worker(&mut report);
                assert!(summary(&report).chars().count() < 2000);
            }
        }
    }

    #[test]
    fn the_report_of_one_process_explains_only_the_growth_of_that_process() {
        let tree = |own: u64, processes: u32| {
            let mut report = json!({
                "verdict": "freed", "explained": 1.0, "missing": [],
                "next": "118 MB are free inside the allocator",
                "private": own << 20,
                "process": {
                    "growth": 118_u64 << 20, "private": 200_u64 << 20, "processes": processes,
                },
            });
            scale_to_worker(&mut report);
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
