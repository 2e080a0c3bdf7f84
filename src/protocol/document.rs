//! Errors as JSON: of a task that raised an exception, of a template or a worker that cannot start,
//! and of a task whose worker exited.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// An exception. The parts are raw JSON, because Python strings may contain characters that Rust
/// strings cannot.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Raised<'a> {
    /// The name of the class.
    #[serde(borrow, rename = "type")]
    pub kind: &'a RawValue,
    /// The message.
    #[serde(borrow)]
    pub message: &'a RawValue,
    /// The traceback, if there is one.
    #[serde(borrow)]
    pub traceback: Option<&'a RawValue>,
}

impl<'a> Raised<'a> {
    /// Reads an exception; `None`: it is malformed, or one of its parts is not a string.
    #[must_use]
    pub fn read(body: &'a [u8]) -> Option<Self> {
        let is_text = |value: &RawValue| value.get().starts_with('"');
        serde_json::from_slice::<Self>(body)
            .ok()
            .filter(|raised| is_text(raised.kind) && is_text(raised.message))
            .filter(|raised| raised.traceback.is_none_or(is_text))
    }
}

/// An error that the supervisor reports on behalf of a process that could not.
#[must_use]
pub fn error(kind: &str, message: &str) -> Vec<u8> {
    let error = Error {
        kind,
        message,
        traceback: None,
    };
    // It contains no map, so this cannot fail.
    serde_json::to_vec(&error).unwrap_or_default()
}

#[derive(Serialize)]
struct Error<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    message: &'a str,
    traceback: Option<&'a str>,
}

/// Tells the client of an executor why a task has no result.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Lost {
    /// `cap`, `timeout`, `exit:N`, `signal:NAME` or `start-failed`.
    pub cause: String,
    /// The cause as a sentence.
    pub message: String,
    /// The number of attempts to run the task.
    pub attempts: u32,
    /// The peak memory of the worker in bytes, if it is known.
    pub peak: Option<u64>,
}

impl Lost {
    /// The body of the frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // It contains no map, so this cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_an_exception_or_malformed(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            text in r#"\{"type": ?[^,]{0,8}, ?"message": ?[^,]{0,8}, ?"traceback": ?.{0,8}\}"#,
        ) {
            for body in [&bytes[..], text.as_bytes()] {
                let raised = Raised::read(body);
                prop_assert!(raised.is_none_or(|it| it.kind.get().starts_with('"')));
            }
        }
    }
}
