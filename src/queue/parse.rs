//! Parses a line as a task, or explains why it is not a task.

use std::{fmt, str};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{Given, Task};

/// The byte order mark that some editors put at the start of a file.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Parses the line `seq` as JSON. `None`: the line is blank.
pub(super) fn json_line(seq: u64, line: &[u8]) -> Option<Given> {
    let line = without_bom(seq, line).trim_ascii();
    if line.is_empty() {
        return None;
    }
    let read = match str::from_utf8(line) {
        Ok(text) => parse_task(seq, text),
        Err(error) => Err(Unreadable::without_id(format!("not UTF-8: {error}"))),
    };
    Some(match read {
        Ok(task) => Given::Task(task),
        Err(Unreadable { id, message }) => Given::Bad {
            seq,
            id,
            message,
            is_text: !line.starts_with(b"{") && !line.starts_with(b"[") && !line.starts_with(b"\""),
        },
    })
}

/// Makes a task of the line `seq` as a string. `None`: the line is empty.
pub(super) fn plain_line(seq: u64, line: &[u8]) -> Option<Given> {
    let line = without_bom(seq, line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return None;
    }
    let json = str::from_utf8(line)
        .map_err(|error| format!("not UTF-8: {error}"))
        .and_then(|text| serde_json::to_string(text).map_err(|error| error.to_string()));
    Some(match json {
        Ok(json) => Given::Task(whole_line_task(seq, &json)),
        Err(message) => Given::Bad {
            seq,
            id: None,
            message,
            is_text: false,
        },
    })
}

fn without_bom(seq: u64, line: &[u8]) -> &[u8] {
    match line.strip_prefix(BOM) {
        Some(rest) if seq == 1 => rest,
        _ => line,
    }
}

/// Why a line is not a task, and its id if that could be read.
struct Unreadable {
    id: Option<Box<str>>,
    message: String,
}

impl Unreadable {
    const fn without_id(message: String) -> Self {
        Self { id: None, message }
    }
}

fn parse_task(seq: u64, text: &str) -> Result<Task, Unreadable> {
    if text.starts_with('{')
        && let Ok(parts) = serde_json::from_str::<Parts<'_>>(text)
    {
        return match parts.args {
            Some(args) if !parts.has_others => task_with_args(seq, args, &parts),
            _ => Ok(whole_line_task(seq, text)),
        };
    }
    // This includes objects with a key that Python can read and this parser cannot, such as half a
    // surrogate pair.
    serde_json::from_str::<IgnoredAny>(text)
        .map(|_| whole_line_task(seq, text))
        .map_err(|error| Unreadable::without_id(not_json(&error)))
}

/// The task that consists of the whole line.
fn whole_line_task(seq: u64, text: &str) -> Task {
    Task {
        seq,
        id: None,
        key: None,
        body: text.as_bytes().into(),
    }
}

/// The task of an object with `args`.
fn task_with_args(seq: u64, args: &RawValue, parts: &Parts<'_>) -> Result<Task, Unreadable> {
    let id = match parts.id.map(RawValue::get) {
        None | Some("null") => None,
        Some(text) if text.starts_with(['[', '{']) => {
            let message = "`id` must be a string, a number or a boolean".to_owned();
            return Err(Unreadable::without_id(message));
        }
        Some(text) => Some(Box::from(text)),
    };
    let key = match parts.key.map(RawValue::get) {
        None | Some("null") => None,
        Some(text) => match serde_json::from_str::<Box<str>>(text) {
            Ok(key) => Some(key),
            Err(_) => {
                let message = "`key` must be a string".to_owned();
                return Err(Unreadable { id, message });
            }
        },
    };
    Ok(Task {
        seq,
        id,
        key,
        body: args.get().as_bytes().into(),
    })
}

fn not_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    // serde_json parses each line as a separate text, so its line number would be wrong.
    format!(
        "not JSON: {}",
        text.replace(" at line 1 column ", ", column ")
    )
}

/// The fields of an object.
#[derive(Default)]
struct Parts<'a> {
    id: Option<&'a RawValue>,
    args: Option<&'a RawValue>,
    key: Option<&'a RawValue>,
    /// The object has other fields, so the object as a whole is the task.
    has_others: bool,
}

impl<'de> Deserialize<'de> for Parts<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(PartsVisitor)
    }
}

struct PartsVisitor;

impl<'de> Visitor<'de> for PartsVisitor {
    type Value = Parts<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    /// Of several fields with the same name, the last one counts, as in Python.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut parts = Parts::default();
        while let Some(field) = map.next_key::<Field>()? {
            match field {
                Field::Id => parts.id = Some(map.next_value()?),
                Field::Args => parts.args = Some(map.next_value()?),
                Field::Key => parts.key = Some(map.next_value()?),
                Field::Other => {
                    parts.has_others = true;
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(parts)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Field {
    Id,
    Args,
    Key,
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<(Option<String>, Option<String>, String), String> {
        match json_line(7, line.as_bytes()).unwrap() {
            Given::Task(task) => {
                assert_eq!(task.seq, 7);
                let body = String::from_utf8(task.body.into()).unwrap();
                Ok((task.id.map(Into::into), task.key.map(Into::into), body))
            }
            Given::Bad { seq, message, .. } => {
                assert_eq!(seq, 7);
                Err(message)
            }
        }
    }

    fn whole(line: &str) {
        assert_eq!(read(line), Ok((None, None, line.to_owned())), "{line}");
    }

    #[test]
    fn an_object_with_args_is_a_task_with_an_optional_id_and_key() {
        let read = |line| read(line).unwrap();
        assert_eq!(
            read(r#" {"args": [1, 2] } "#),
            (None, None, "[1, 2]".into())
        );
        let named = (Some(r#""a\n""#.into()), Some("k\n".into()), "{}".into());
        assert_eq!(read(r#"{"key":"k\n","id":"a\n","args":{}}"#), named);
        assert_eq!(
            read(r#"{"id":1.50,"args":null}"#),
            (Some("1.50".into()), None, "null".into())
        );
        assert_eq!(
            read(r#"{"id":null,"key":null,"args":1}"#),
            (None, None, "1".into())
        );
        assert_eq!(read(r#"{"args":1,"args":2}"#), (None, None, "2".into()));
    }

    #[test]
    fn any_other_json_is_a_task_as_a_whole() {
        whole("1");
        whole(r#""text""#);
        whole("[1, {}]");
        whole("{}");
        whole(r#"{"id":1}"#);
        whole(r#"{"id":1,"args":2,"more":3}"#);
        whole(r#"{"\ud800":1,"args":2}"#);
        whole(&("[".repeat(5000) + &"]".repeat(5000)));
        assert_eq!(
            read("\u{feff}1"),
            Err("not JSON: expected value, column 1".into())
        );
        assert!(
            matches!(json_line(1, "\u{feff}1\r".as_bytes()), Some(Given::Task(task))
            if &*task.body == b"1")
        );
        assert_eq!(json_line(7, b" \t\r"), None);
    }

    #[test]
    fn a_plain_line_is_a_string_even_if_it_is_json() {
        let read = |seq, line: &[u8]| match plain_line(seq, line) {
            Some(Given::Task(task)) => String::from_utf8(task.body.into()).unwrap(),
            other => format!("{other:?}"),
        };
        assert_eq!(read(7, b"a.csv"), "\"a.csv\"");
        assert_eq!(read(7, b"2024\r"), "\"2024\"");
        assert_eq!(read(7, b" {\"args\":1} "), "\" {\\\"args\\\":1} \"");
        assert_eq!(read(1, "\u{feff}x".as_bytes()), "\"x\"");
        assert_eq!(read(7, b"a\0\x1b"), "\"a\\u0000\\u001b\"");
        assert_eq!((plain_line(7, b""), plain_line(7, b"\r")), (None, None));
        assert!(read(7, b"\xff").contains("not UTF-8"));
    }

    #[test]
    fn plain_text_is_distinguished_from_malformed_json() {
        for (line, expected) in [
            ("a.csv", true),
            ("/x", true),
            ("1 2", true),
            ("{\"a\":", false),
        ] {
            let given = json_line(7, line.as_bytes());
            assert!(
                matches!(given, Some(Given::Bad { is_text, .. }) if is_text == expected),
                "{line}"
            );
        }
    }

    #[test]
    fn a_line_that_is_not_a_task_has_a_message_that_says_why() {
        assert_eq!(
            read("{\"args\":"),
            Err("not JSON: EOF while parsing a value, column 8".into())
        );
        assert!(read("1 2").unwrap_err().starts_with("not JSON: trailing"));
        assert!(read("NaN").is_err());
        assert!(
            read(r#"{"id":[],"args":1}"#)
                .unwrap_err()
                .starts_with("`id` must")
        );
        assert!(
            matches!(json_line(7, b"\"\xff\""), Some(Given::Bad { message, .. })
            if message.starts_with("not UTF-8"))
        );
        let bad = json_line(7, br#"{"key":1,"args":1,"id":5}"#);
        assert!(matches!(bad, Some(Given::Bad { id: Some(id), message, .. })
            if &*id == "5" && message == "`key` must be a string"));
    }
}
