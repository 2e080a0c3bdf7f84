//! A memory report about a worker that has ended or does not answer.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{supervisor::action::About, units::Bytes};

use super::stacks::{Frame, Stack};

/// Maximum suspects: lines that ran while the worker grew.
const SUSPECTS_MAX: usize = 5;
/// Maximum length of a line in the event of an end.
const RAN_MAX: usize = 200;

/// Makes the report. Its suspects are the lines that ran while the worker grew, each with the
/// growth up to the next sample. Without the worker's help, objects cannot be distinguished from
/// other memory. So the verdict is a guess if a line of Python ran, and `mixed` otherwise.
pub(super) fn compose(
    about: &About,
    why: &str,
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
        "next": next_step(lines.first(), why),
        "base": "none",
        "missing": [format!("figures from inside the worker: {why}")],
    })
}

/// One line of the application, and the growth while it ran.
#[derive(Debug)]
struct Line {
    frame: Frame,
    /// The sum of the growth from each sample with this line to the sample after it.
    grew: Bytes,
    /// How many samples had this line.
    samples: u32,
    /// The stack of the first of them, the innermost frame first.
    chain: Vec<String>,
}

impl Line {
    fn document(&self) -> Value {
        json!({
            "where": format!("{}:{}", self.frame.file, self.frame.line),
            "function": self.frame.function,
            "type": Value::Null,
            "count": self.samples,
            "bytes": self.grew.get(),
            "growth_bytes": self.grew.get(),
            "holder": Value::Null,
            "chain": self.chain,
            "note": "ran while memory grew",
        })
    }
}

/// The lines that ran, sorted by the growth until the next sample, the largest first.
fn lines(last: Bytes, stacks: &[Stack]) -> Vec<Line> {
    let mut lines: BTreeMap<(String, u32), Line> = BTreeMap::new();
    for (index, stack) in stacks.iter().enumerate() {
        let Some(own) = own_line(&stack.frames) else {
            continue;
        };
        let until = stacks.get(index + 1).map_or(last, |next| next.memory);
        let key = (own.file.clone(), own.line);
        let line = lines.entry(key).or_insert_with(|| Line {
            frame: own.clone(),
            grew: Bytes::ZERO,
            samples: 0,
            chain: stack.frames.iter().map(shown).collect(),
        });
        line.grew = line.grew.plus(until.minus(stack.memory));
        line.samples = line.samples.saturating_add(1);
    }
    let mut lines: Vec<Line> = lines.into_values().collect();
    lines.sort_by_key(|line| std::cmp::Reverse((line.grew, line.samples)));
    lines.truncate(SUSPECTS_MAX);
    lines
}

/// The last line of the application that ran, and the memory then.
pub(super) fn ran(stacks: &[Stack]) -> Option<String> {
    let last = stacks.last()?;
    let Frame {
        file,
        line,
        function,
    } = own_line(&last.frames)?;
    let place: String = format!("{file}:{line} {function}")
        .chars()
        .take(RAN_MAX)
        .collect();
    Some(format!("{place}, at {}", last.memory))
}

/// The innermost line of the application itself; of a library, if there is no line of the
/// application. Never one of the agent, which may have interrupted the application.
fn own_line(frames: &[Frame]) -> Option<&Frame> {
    let of_agent = |frame: &&Frame| frame.file.contains("/_supervise_agent/");
    let mut frames = frames.iter().filter(|frame| !of_agent(frame));
    let is_own = |frame: &&Frame| {
        // A program in `bin` only starts the server.
        let library = ["/lib/python", "/bin/"]
            .iter()
            .any(|part| frame.file.contains(part))
            || frame.file.starts_with('<');
        !library
    };
    let innermost = frames.clone().next();
    frames.find(is_own).or(innermost)
}

/// A frame as text for people.
fn shown(frame: &Frame) -> String {
    format!("{}:{} in {}", frame.file, frame.line, frame.function)
}

/// What the operator can do next.
fn next_step(first: Option<&Line>, why: &str) -> String {
    match first {
        Some(Line { frame, .. }) => format!(
            "look at {}:{} in {}, which ran while memory grew; process its data in parts, or raise \
             the cap",
            frame.file, frame.line, frame.function
        ),
        None => format!(
            "there are no figures from inside the worker ({why}); `supervise status` shows why"
        ),
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        supervisor::cause::Cause,
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
    fn the_line_with_the_most_growth_is_the_first_suspect() {
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
        assert_eq!(ran(&stacks).unwrap(), "/srv/etl.py:7 load, at 110M");
        assert_eq!(ran(&[]), None);
        let mut idle = stack(120, 7);
        idle.frames[1].file = "/srv/.venv/bin/gunicorn".to_owned();
        let decoder = "/usr/lib/python3.11/json/decoder.py:353 load, at 120M";
        assert_eq!(ran(&[idle]).unwrap(), decoder);
        // The agent has interrupted a program without a file.
        let mut interrupted = stack(120, 7);
        interrupted.frames[0].file = "/run/x/_supervise_agent/census.py".to_owned();
        interrupted.frames[1].file = "<string>".to_owned();
        assert_eq!(ran(&[interrupted]).unwrap(), "<string>:7 load, at 120M");
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
