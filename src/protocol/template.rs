//! The settings of a pool's template, and its messages, which are JSON datagrams.
//!
//! The template receives its settings on its command line. Each message is an object with one key,
//! the name of the message. With `fork_server` the template sends a descriptor: the socket of the
//! fork server.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The settings of the template.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Settings {
    /// [`super::frame::VERSION`].
    pub protocol: u64,
    /// The descriptor of its socket.
    pub control: i32,
    /// How tasks and results are encoded.
    pub codec: Codec,
    /// `MODULE:FUNCTION` for lines; `None` for an executor.
    pub function: Option<String>,
    /// `one`, `args` or `kwargs`.
    pub call: String,
    /// Modules to import first.
    pub imports: Vec<String>,
    /// `MODULE:FUNCTION` that each worker calls first.
    pub initializer: Option<String>,
    /// The number of modules that the template imports. Each worker imports the others.
    pub warm: u32,
}

/// How tasks and results are encoded.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// Lines of JSON.
    Json,
    /// Pickles of an executor.
    Pickle,
}

/// A message to the template.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ToTemplate {
    /// Asks the template to fork the fork server of a slot.
    ForkServer {
        /// The slot.
        slot: u32,
    },
}

/// A message from the template.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FromTemplate<'a> {
    /// The template has imported all modules.
    Ready(Imports),
    /// An import failed, with this error ([`super::document`]).
    #[serde(borrow)]
    Failed(&'a RawValue),
    /// The template has forked a fork server.
    ForkServer {
        /// The slot.
        slot: u32,
        /// The process id of the fork server.
        pid: i32,
    },
    /// The template could not fork a fork server.
    Refused {
        /// The slot.
        slot: u32,
        /// The errno of fork(2).
        errno: i32,
    },
}

/// What the imported modules hold in the template that forks cannot share.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Imports {
    /// One line for each module.
    pub unshareable: Vec<String>,
    /// The number of the first module that has imported one of these modules.
    pub from: Option<u64>,
}

/// Encodes a message.
#[must_use]
pub fn encode(message: &impl Serialize) -> String {
    // All keys of these messages are strings, so this cannot fail.
    serde_json::to_string(message).unwrap_or_default()
}

/// Decodes a message; `None`: it is malformed.
pub fn decode<'a, T: Deserialize<'a>>(datagram: &'a [u8]) -> Option<T> {
    serde_json::from_slice(datagram).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_datagram_is_a_message_or_malformed(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            name in "ready|failed|fork_server|refused",
            content in r#"[\[{}\]"0-9a-z:,. -]{0,60}"#,
        ) {
            let text = format!("{{\"{name}\":{content}}}");
            for datagram in [&bytes[..], text.as_bytes()] {
                let _ = decode::<FromTemplate<'_>>(datagram);
            }
        }
    }

    #[test]
    fn a_message_with_a_field_out_of_range_is_malformed() {
        for text in [
            r#"{"fork_server":{"slot":-1,"pid":4}}"#,
            r#"{"fork_server":{"slot":1,"pid":4294967296}}"#,
            r#"{"fork_server":{"slot":1}}"#,
            r#"{"other":{"slot":1,"pid":4}}"#,
            r#"{"ready":{"unshareable":"`db`"}}"#,
            "",
        ] {
            assert!(
                decode::<FromTemplate<'_>>(text.as_bytes()).is_none(),
                "{text}"
            );
        }
    }

    #[test]
    fn an_error_is_passed_on_unchanged() {
        let error = r#"{"type":"E","message":"\udc80","traceback":null}"#;
        let text = format!(r#"{{"failed":{error}}}"#);
        let Some(FromTemplate::Failed(found)) = decode(text.as_bytes()) else {
            panic!("{text}");
        };
        assert_eq!(found.get(), error);
    }
}
