//! Shortens a report to its maximum length. The least important parts are left out first, and the
//! report lists them.

use serde_json::{Map, Value, json};

use crate::units::ReportId;

/// The maximum length of a report, in bytes.
pub(super) const REPORT_MAX: usize = 64 << 10;
/// Bytes reserved for the list of what was left out.
const NOTES: usize = 1 << 10;
/// A shortened chain keeps this many references at each end.
const CHAIN_END: usize = 3;
/// Maximum characters of a reference in a shortened chain.
const LINK: usize = 120;
/// The fields that identify a report and its result. They are left out last.
const HEAD: [&str; 11] = [
    "id",
    "worker",
    "pid",
    "at",
    "cause",
    "process",
    "verdict",
    "explained",
    "grew",
    "base",
    "next",
];
/// Maximum length of each of these fields, in bytes.
const HEAD_FIELD: usize = 4 << 10;

type Report = Map<String, Value>;

/// Shortens a report. Returns a description of what it has left out, if anything.
type Step = fn(&mut Report) -> Option<String>;

/// The steps, in the order in which they are applied.
const STEPS: [Step; 4] = [drop_threads, shorten_chains, drop_suspects, keep_head];

/// The report as text, with its id.
pub(super) fn text(id: ReportId, document: Value) -> String {
    let mut report = match document {
        Value::Object(report) => report,
        _ => Report::new(),
    };
    report.insert("id".to_owned(), id.to_string().into());
    for step in STEPS {
        if size(&report) <= REPORT_MAX - NOTES {
            break;
        }
        if let Some(note) = step(&mut report) {
            let missing = report.entry("missing").or_insert_with(|| json!([]));
            match missing {
                Value::Array(notes) => notes.push(note.into()),
                other => *other = json!([other.take(), note]),
            }
        }
    }
    Value::Object(report).to_string()
}

fn drop_threads(report: &mut Report) -> Option<String> {
    report.remove("threads")?;
    Some("threads and their stacks, because the report was too long".to_owned())
}

fn shorten_chains(report: &mut Report) -> Option<String> {
    let mut shortened = false;
    for suspect in report.get_mut("suspects")?.as_array_mut()? {
        let Some(chain) = suspect.get_mut("chain").and_then(Value::as_array_mut) else {
            continue;
        };
        if chain.len() > 2 * CHAIN_END + 1 {
            let middle = CHAIN_END..chain.len() - CHAIN_END;
            let note = format!("... {} more ...", middle.len());
            chain.splice(middle, [note.into()]);
            shortened = true;
        }
        for link in chain {
            if let Value::String(text) = link
                && let Some((end, _)) = text.char_indices().nth(LINK)
            {
                text.truncate(end);
                text.push('…');
                shortened = true;
            }
        }
    }
    shortened.then(|| "the middle of long chains, because the report was too long".to_owned())
}

fn drop_suspects(report: &mut Report) -> Option<String> {
    let mut size = size(report);
    let suspects = report.get_mut("suspects")?.as_array_mut()?;
    let before = suspects.len();
    while size > REPORT_MAX - NOTES
        && let Some(suspect) = suspects.pop()
    {
        size -= suspect.to_string().len();
    }
    let gone = before - suspects.len();
    (gone > 0)
        .then(|| format!("the last {gone} of {before} suspects, because the report was too long"))
}

fn keep_head(report: &mut Report) -> Option<String> {
    report.retain(|name, value| {
        HEAD.contains(&name.as_str()) && value.to_string().len() <= HEAD_FIELD
    });
    Some("all fields except its head, because the report was too long".to_owned())
}

fn size(report: &Report) -> usize {
    // An object always has a JSON form.
    serde_json::to_string(report).unwrap_or_default().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounded(document: Value) -> Value {
        let text = text(ReportId(3), document);
        assert!(text.len() <= REPORT_MAX, "{}", text.len());
        serde_json::from_str(&text).unwrap()
    }

    fn missing(report: &Value) -> Vec<&str> {
        let notes = report["missing"].as_array().unwrap();
        notes.iter().map(|note| note.as_str().unwrap()).collect()
    }

    #[test]
    fn a_short_report_is_not_changed() {
        let report = json!({"id": "?", "threads": [{"name": "a", "stack": []}], "missing": []});
        let expected = json!({"id": "r3", "threads": [{"name": "a", "stack": []}], "missing": []});
        assert_eq!(bounded(report), expected);
        assert_eq!(bounded(Value::Null), json!({"id": "r3"}));
    }

    #[test]
    fn the_least_important_parts_are_left_out_first() {
        let threads = vec![json!({"name": "x", "stack": vec!["a.py:1 run"; 10]}); 1000];
        let report = bounded(json!({
            "verdict": "python", "threads": threads, "suspects": [{"chain": vec!["a"; 20]}],
        }));
        assert_eq!(report.get("threads"), None);
        assert_eq!(report["suspects"][0]["chain"].as_array().unwrap().len(), 20);
        assert_eq!(
            missing(&report),
            ["threads and their stacks, because the report was too long"]
        );

        let suspect = json!({"where": "a.py:7", "chain": vec!["é".repeat(200); 100]});
        let report = bounded(json!({"suspects": vec![suspect; 3], "missing": ["a base"]}));
        let chain = report["suspects"][2]["chain"].as_array().unwrap();
        assert_eq!(chain.len(), 7);
        assert_eq!(chain[3], "... 94 more ...");
        assert_eq!(chain[6].as_str().unwrap().chars().count(), LINK + 1);
        assert_eq!(
            missing(&report),
            [
                "a base",
                "the middle of long chains, because the report was too long"
            ]
        );
    }

    #[test]
    fn the_last_suspects_and_finally_all_fields_but_the_head_are_left_out() {
        let suspects: Vec<_> = (0..100)
            .map(|number| json!({"where": number, "note": "x".repeat(1000)}))
            .collect();
        let report = bounded(json!({"suspects": suspects, "missing": "one thing"}));
        let left = report["suspects"].as_array().unwrap();
        assert!(left.len() > 50 && left[0]["where"] == 0, "{}", left.len());
        let gone = 100 - left.len();
        let note = format!("the last {gone} of 100 suspects, because the report was too long");
        assert_eq!(missing(&report), ["one thing", note.as_str()]);

        let report = bounded(json!({
            "worker": "w1", "verdict": "native", "next": "x".repeat(100_000),
            "missing": vec!["y".repeat(1000); 100], "unheard": vec![0; 100_000],
        }));
        assert_eq!(
            report,
            json!({
                "id": "r3", "worker": "w1", "verdict": "native",
                "missing": ["all fields except its head, because the report was too long"],
            })
        );
    }
}
