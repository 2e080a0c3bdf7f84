//! The document of a report, parsed leniently. A kept report may come from another version: unknown
//! fields are ignored, and fields that are missing or of another type are empty.

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

/// Maximum characters of a text.
const TEXT: usize = 400;

/// The report of one worker (docs/report.md).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Report {
    pub(super) id: Text,
    pub(super) worker: Text,
    pub(super) pid: Text,
    pub(super) at: Figure,
    pub(super) cause: Text,
    pub(super) process: Part<Process>,
    pub(super) verdict: Text,
    pub(super) explained: Figure,
    pub(super) suspects: List<Suspect>,
    pub(super) gc: Part<Gc>,
    pub(super) malloc: Part<Malloc>,
    pub(super) threads: List<Thread>,
    pub(super) tasks: Part<Tasks>,
    pub(super) request: List<Text>,
    pub(super) routes: List<Route>,
    pub(super) grew: Part<Grew>,
    pub(super) next: Text,
    pub(super) cost: Part<Cost>,
    pub(super) base: Text,
    pub(super) missing: List<Text>,
}

/// The worker's memory, measured from outside.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Process {
    pub(super) private: Figure,
    pub(super) rss: Figure,
    pub(super) baseline: Figure,
    pub(super) growth: Figure,
}

/// Something that grew.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Suspect {
    #[serde(rename = "where")]
    pub(super) place: Text,
    pub(super) function: Text,
    #[serde(rename = "type")]
    pub(super) kind: Text,
    pub(super) count: Figure,
    pub(super) bytes: Figure,
    pub(super) growth_bytes: Figure,
    pub(super) holder: Text,
    pub(super) chain: List<Text>,
    pub(super) note: Text,
}

/// The growth of the whole service by one route.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Route {
    pub(super) route: Text,
    pub(super) growth_bytes: Figure,
    pub(super) per_request: Figure,
    pub(super) share: Figure,
    pub(super) certain: Part<Option<bool>>,
}

/// The result of a garbage collection.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Gc {
    pub(super) collected: Figure,
    pub(super) uncollectable: Figure,
    pub(super) freed_bytes: Figure,
    pub(super) enabled: Part<Option<bool>>,
}

/// The C library's allocator.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Malloc {
    pub(super) in_use: Figure,
    pub(super) free: Figure,
    pub(super) arenas: Figure,
}

/// One thread.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Thread {
    pub(super) name: Text,
    pub(super) stack: List<Text>,
}

/// Asyncio tasks.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Tasks {
    pub(super) count: Figure,
    pub(super) growth: Figure,
}

/// The parts of the growth, in bytes.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Grew {
    pub(super) python: Figure,
    pub(super) native: Figure,
    pub(super) garbage: Figure,
    pub(super) freed: Figure,
}

/// What the report cost.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Cost {
    pub(super) windows: Figure,
    pub(super) traced_s: Figure,
    pub(super) took_s: Figure,
}

/// A text on one line, control characters escaped; empty if it is missing.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Text(pub(super) String);

/// A number; `None` if it is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Figure(pub(super) Option<f64>);

/// The elements that can be parsed; a value that is not a list counts as a list of one.
#[derive(Debug)]
pub(super) struct List<T>(pub(super) Vec<T>);

/// A part that may be missing.
#[derive(Debug, Default)]
pub(super) struct Part<T>(pub(super) T);

impl Text {
    pub(super) const fn is_present(&self) -> bool {
        !self.0.is_empty()
    }

    pub(super) fn text(&self) -> Option<&str> {
        self.is_present().then_some(self.0.as_str())
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Value::deserialize(deserializer)? {
            Value::String(text) => Self(clean(&text)),
            Value::Number(number) => Self(number.to_string()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => Self::default(),
        })
    }
}

impl<'de> Deserialize<'de> for Figure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Value::deserialize(deserializer)?.as_f64()))
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = match Value::deserialize(deserializer)? {
            Value::Array(values) => values,
            Value::Null => Vec::new(),
            value => vec![value],
        };
        let read = values.into_iter().map(serde_json::from_value);
        Ok(Self(read.filter_map(Result::ok).collect()))
    }
}

impl<'de, T: DeserializeOwned + Default> Deserialize<'de> for Part<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Ok(Self(serde_json::from_value(value).unwrap_or_default()))
    }
}

/// Names come from the worker: they must not forge a line or control the terminal.
fn clean(text: &str) -> String {
    let mut clean = String::new();
    for (at, letter) in text.trim().chars().enumerate() {
        if at == TEXT {
            clean.push('…');
            break;
        }
        if letter.is_control() {
            clean.extend(letter.escape_default());
        } else {
            clean.push(letter);
        }
    }
    clean
}
