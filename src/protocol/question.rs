//! Questions to agents and their answers: JSON objects in files.
//!
//! A question is in `ask/PID`, the answer in `said/PID.json`. Each file is renamed into place, so
//! that a reader never sees an incomplete file.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::agent_page::VERSION;

/// A request to the agent of a process.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Question {
    /// The answer has the same number.
    pub id: u64,
    /// [`VERSION`].
    pub protocol: u64,
    /// The request.
    #[serde(flatten)]
    pub ask: Ask,
}

/// The kind of a [`Question`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Ask {
    /// Collect garbage, and return free memory to the kernel.
    Gc,
    /// Take the figures that a report compares with, if no request is in progress, in a few
    /// milliseconds. Agents that do not know this request answer that it failed.
    Base,
    /// Start to trace allocations.
    Open {
        /// Also take the figures that a report compares with, at once and completely.
        base: bool,
        /// Number of frames to record for each allocation.
        frames: u32,
        /// Maximum memory of the agent itself, in bytes.
        room: u64,
    },
    /// Stop tracing.
    Close,
    /// Report which objects hold the memory.
    Report {
        /// Maximum time of the report, in seconds. Agents of version 0 take at most 1.5 s.
        time_budget_s: f64,
        /// Maximum memory of the agent itself, in bytes.
        room: u64,
        /// The private memory of the worker, in bytes.
        private: u64,
        /// The memory of the worker after its start, in bytes; 0: unknown.
        baseline: u64,
        /// The cause for which the worker will be replaced.
        cause: String,
        /// When to make it.
        when: When,
    },
}

/// When an agent makes a report.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// At once.
    Now,
    /// At once, if the process serves no request.
    Idle,
    /// When the process has answered its last request and is about to exit. No signal is sent then.
    AfterDrain,
}

impl Question {
    /// The text of a question.
    #[must_use]
    pub fn encode(id: u64, ask: Ask) -> String {
        let question = Self {
            id,
            protocol: VERSION,
            ask,
        };
        // All keys are strings, so this cannot fail.
        serde_json::to_string(&question).unwrap_or_default()
    }
}

/// An agent's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The number of the question.
    pub id: u64,
    /// The version of the agent; 0 for old agents, which do not write it.
    pub protocol: u64,
    /// The content.
    pub content: Content,
}

/// The content of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Garbage was collected.
    Collected {
        /// The private memory before the collection, in bytes.
        before: u64,
        /// The private memory after the collection, in bytes.
        after: u64,
    },
    /// The process serves a request, so it has done nothing. It should be asked again.
    Busy,
    /// The answer to [`Ask::Base`].
    Base {
        /// The figures are taken. If not, the agent should be asked again.
        taken: bool,
    },
    /// The agent has started to trace allocations.
    Opened,
    /// The agent has stopped tracing.
    Closed,
    /// A report, a JSON object.
    Report(Value),
    /// The request failed, with the reason if the agent has sent one.
    Failed(Option<String>),
    /// An unknown answer.
    NotUnderstood,
}

impl Answer {
    /// Reads an answer; `None`: it is malformed, or has no number of a question.
    #[must_use]
    pub fn read(text: &[u8]) -> Option<Self> {
        let answer: Value = serde_json::from_slice(text).ok()?;
        let number = |name: &str| answer.get(name).and_then(Value::as_u64);
        Some(Self {
            id: number("id")?,
            protocol: number("protocol").unwrap_or(0),
            content: content(answer),
        })
    }
}

fn content(mut answer: Value) -> Content {
    if answer.get("ok").and_then(Value::as_bool) != Some(true) {
        let why = answer.get("error").and_then(Value::as_str);
        return Content::Failed(why.map(str::to_owned));
    }
    if answer.get("busy").and_then(Value::as_bool) == Some(true) {
        return Content::Busy;
    }
    let report = answer.get_mut("report").map(Value::take);
    if let Some(report) = report.filter(Value::is_object) {
        return Content::Report(report);
    }
    let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
    match answer.get("do").and_then(Value::as_str) {
        Some("gc") => Content::Collected {
            before: number("private_before"),
            after: number("private_after"),
        },
        Some("base") => Content::Base {
            taken: answer.get("taken").and_then(Value::as_bool) == Some(true),
        },
        Some("open") => Content::Opened,
        Some("close") => Content::Closed,
        _ => Content::NotUnderstood,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_malformed(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            text in r#"\{"id": ?[0-9]{1,21}, ?"ok": ?(true|1), ?"(do|report)": ?.{0,20}\}"#,
        ) {
            for text in [&bytes[..], text.as_bytes()] {
                let answer = Answer::read(text);
                let is_report = |answer: &Answer| match &answer.content {
                    Content::Report(report) => report.is_object(),
                    _ => true,
                };
                prop_assert!(answer.as_ref().is_none_or(is_report));
            }
        }
    }
}
