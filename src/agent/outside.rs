//! A report without its worker: what can be said of one that has ended, or does not answer.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{supervisor::action::About, units::Bytes};

use super::stacks::{Frame, Stack};

/// So many lines that ran while it grew are named.
const SUSPECTS_MAX: usize = 5;

/// The report. Its suspects are the lines that ran while memory came, each with the growth up to
/// the next look. From outside nobody can tell objects from other memory: where a line of Python
/// ran the verdict is a guess, and without one it is `mixed`.
pub(super) fn compose(
    about: &About,
    silent: &str,
    mappings: &[(String, Bytes)],
    stacks: &[Stack],
) -> Value {
    let baseline = about.baseline.unwrap_or_default();
    let growth = about.private.minus(baseline);
    let lines = lines(about.private, stacks);
    let seen = lines
        .iter()
        .fold(Bytes::ZERO, |sum, line| sum.plus(line.grew));
    let explained = if growth == Bytes::ZERO {
        0.0
    } else {
        (seen.as_f64() / growth.as_f64()).min(1.0)
    };
    let suspects: Vec<Value> = lines.iter().map(Line::document).collect();
    let maps: Vec<Value> = mappings
        .iter()
        .map(|(kind, bytes)| json!({"kind": kind, "private": bytes.get()}))
        .collect();
    let verdict = if lines.is_empty() { "mixed" } else { "python" };
    json!({
        "verdict": verdict,
        "explained": (explained * 100.0).round() / 100.0,
        "suspects": suspects,
        "mappings": maps,
        "next": next(lines.first(), silent),
        "base": "none",
        "missing": [format!("nothing was said from inside: {silent}")],
    })
}

/// One line of the application, and what grew while it ran.
#[derive(Debug)]
struct Line {
    at: Frame,
    grew: Bytes,
    times: u32,
    chain: Vec<String>,
}

impl Line {
    fn document(&self) -> Value {
        json!({
            "where": format!("{}:{}", self.at.file, self.at.line),
            "function": self.at.function,
            "type": Value::Null,
            "count": self.times,
            "bytes": self.grew.get(),
            "growth_bytes": self.grew.get(),
            "holder": Value::Null,
            "chain": self.chain,
            "note": "ran while it grew",
        })
    }
}

/// The lines that ran, by what came until the next look, the most first.
fn lines(last: Bytes, stacks: &[Stack]) -> Vec<Line> {
    let mut lines: BTreeMap<(String, u32), Line> = BTreeMap::new();
    for (at, stack) in stacks.iter().enumerate() {
        let Some(own) = own_line(&stack.frames) else {
            continue;
        };
        let until = stacks.get(at + 1).map_or(last, |next| next.memory);
        let key = (own.file.clone(), own.line);
        let line = lines.entry(key).or_insert_with(|| Line {
            at: own.clone(),
            grew: Bytes::ZERO,
            times: 0,
            chain: stack.frames.iter().map(shown).collect(),
        });
        line.grew = line.grew.plus(until.minus(stack.memory));
        line.times = line.times.saturating_add(1);
    }
    let mut lines: Vec<Line> = lines.into_values().collect();
    lines.sort_by_key(|line| std::cmp::Reverse((line.grew, line.times)));
    lines.truncate(SUSPECTS_MAX);
    lines
}

/// The innermost line of the application itself; of a library, if there is no other.
fn own_line(frames: &[Frame]) -> Option<&Frame> {
    let is_own = |frame: &&Frame| {
        let library = frame.file.contains("/lib/python") || frame.file.starts_with('<');
        !library && !frame.file.contains("/_supervise_agent/")
    };
    frames.iter().find(is_own).or_else(|| frames.first())
}

fn shown(frame: &Frame) -> String {
    format!("{}:{} in {}", frame.file, frame.line, frame.function)
}

fn next(first: Option<&Line>, silent: &str) -> String {
    match first {
        Some(Line { at, .. }) => format!(
            "look at {}:{} in {}: it ran while memory grew; read or build in parts what it takes \
             as a whole, or give a larger cap",
            at.file, at.line, at.function
        ),
        None => format!("nothing is known from inside ({silent}); `supervise status` says why"),
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        supervisor::report::Cause,
        units::{ReportId, WorkerId},
    };

    use super::*;

    fn stack(mib: u64, line: u32) -> Stack {
        let frame = |file: &str, line| Frame {
            file: file.to_owned(),
            line,
            function: "load".to_owned(),
        };
        Stack {
            memory: Bytes::mib(mib),
            frames: vec![
                frame("/usr/lib/python3.11/json/decoder.py", 353),
                frame("/srv/etl.py", line),
            ],
        }
    }

    #[test]
    fn the_line_under_which_most_memory_came_is_the_first_suspect() {
        let about = About {
            report: ReportId(1),
            worker: WorkerId::FIRST,
            pid: 7,
            cause: Cause::Cap,
            private: Bytes::mib(200),
            rss: Bytes::mib(200),
            baseline: Some(Bytes::mib(20)),
            processes: 1,
        };
        let stacks = [stack(80, 3), stack(90, 7), stack(110, 7)];
        let report = compose(&about, "the kernel ended it", &[], &stacks);
        assert_eq!(report["suspects"][0]["where"], "/srv/etl.py:7");
        assert_eq!(report["suspects"][0]["growth_bytes"], 110 << 20);
        assert_eq!(report["suspects"][1]["where"], "/srv/etl.py:3");
        let nothing = compose(&about, "the kernel ended it", &[], &[]);
        assert_eq!(
            (&nothing["verdict"], &nothing["explained"]),
            (&json!("mixed"), &json!(0.0))
        );
    }
}
