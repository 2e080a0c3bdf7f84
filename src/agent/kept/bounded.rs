//! A report no longer than it may be. What matters least goes first, and the report says so.

use serde_json::{Map, Value, json};

use crate::units::ReportId;

/// No report is longer, in bytes.
pub(super) const LONGEST: usize = 64 << 10;
/// What is left for saying what was left out.
const NOTES: usize = 1 << 10;
/// Of a chain, so many references stay at either end.
const CHAIN_END: usize = 3;
/// A reference in a chain that was shortened is no longer, in letters.
const LINK: usize = 120;
/// What a report is about; the last to go.
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
/// One of these is no longer, in bytes.
const HEAD_FIELD: usize = 4 << 10;

type Report = Map<String, Value>;

/// Makes a report shorter, and says what it has left out, if anything.
type Step = fn(&mut Report) -> Option<String>;

/// In the order in which they are missed.
const STEPS: [Step; 4] = [no_threads, short_chains, fewer_suspects, only_the_head];

/// The report as text, with its id.
pub(super) fn text(id: ReportId, document: Value) -> String {
    let mut report = match document {
        Value::Object(report) => report,
        _ => Report::new(),
    };
    report.insert("id".to_owned(), id.to_string().into());
    for step in STEPS {
        if size(&report) <= LONGEST - NOTES {
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

fn no_threads(report: &mut Report) -> Option<String> {
    report.remove("threads")?;
    Some("threads and their stacks: the report was too long".to_owned())
}

fn short_chains(report: &mut Report) -> Option<String> {
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
    shortened.then(|| "the middle of long chains: the report was too long".to_owned())
}

fn fewer_suspects(report: &mut Report) -> Option<String> {
    let mut size = size(report);
    let suspects = report.get_mut("suspects")?.as_array_mut()?;
    let before = suspects.len();
    while size > LONGEST - NOTES
        && let Some(suspect) = suspects.pop()
    {
        size -= suspect.to_string().len();
    }
    let gone = before - suspects.len();
    (gone > 0).then(|| format!("the last {gone} of {before} suspects: the report was too long"))
}

fn only_the_head(report: &mut Report) -> Option<String> {
    report.retain(|name, value| {
        HEAD.contains(&name.as_str()) && value.to_string().len() <= HEAD_FIELD
    });
    Some("all but its head: the report was too long".to_owned())
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
        assert!(text.len() <= LONGEST, "{}", text.len());
        serde_json::from_str(&text).unwrap()
    }

    fn missing(report: &Value) -> Vec<&str> {
        let notes = report["missing"].as_array().unwrap();
        notes.iter().map(|note| note.as_str().unwrap()).collect()
    }

    #[test]
    fn a_short_report_is_left_as_it_is() {
        let report = json!({"id": "?", "threads": [{"name": "a", "stack": []}], "missing": []});
        let expected = json!({"id": "r3", "threads": [{"name": "a", "stack": []}], "missing": []});
        assert_eq!(bounded(report), expected);
        assert_eq!(bounded(Value::Null), json!({"id": "r3"}));
    }

    #[test]
    fn what_matters_least_goes_first() {
        let threads = vec![json!({"name": "x", "stack": vec!["a.py:1 run"; 10]}); 1000];
        let report = bounded(json!({
            "verdict": "python", "threads": threads, "suspects": [{"chain": vec!["a"; 20]}],
        }));
        assert_eq!(report.get("threads"), None);
        assert_eq!(report["suspects"][0]["chain"].as_array().unwrap().len(), 20);
        assert_eq!(
            missing(&report),
            ["threads and their stacks: the report was too long"]
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
                "the middle of long chains: the report was too long"
            ]
        );
    }

    #[test]
    fn the_last_suspects_go_and_in_the_end_all_but_the_head() {
        let suspects: Vec<_> = (0..100)
            .map(|number| json!({"where": number, "note": "x".repeat(1000)}))
            .collect();
        let report = bounded(json!({"suspects": suspects, "missing": "one thing"}));
        let left = report["suspects"].as_array().unwrap();
        assert!(left.len() > 50 && left[0]["where"] == 0, "{}", left.len());
        let gone = 100 - left.len();
        let note = format!("the last {gone} of 100 suspects: the report was too long");
        assert_eq!(missing(&report), ["one thing", note.as_str()]);

        let report = bounded(json!({
            "worker": "w1", "verdict": "native", "next": "x".repeat(100_000),
            "missing": vec!["y".repeat(1000); 100], "unheard": vec![0; 100_000],
        }));
        assert_eq!(
            report,
            json!({
                "id": "r3", "worker": "w1", "verdict": "native",
                "missing": ["all but its head: the report was too long"],
            })
        );
    }
}
