//! One line of the log, and its three forms.

use std::{
    fmt::{self, Write as _},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::{
    Event, Level,
    field::{Field, Visit},
};

use crate::escape;

use super::journal::Record;

/// The target of events. Their messages include the figures, so the text form shows no fields.
pub(super) const EVENT: &str = "supervise::event";
/// The target of the decider's reasons, which are events as well.
pub(super) const DECIDER: &str = "supervise::decider";

/// The form of a line.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    Text,
    Json,
    Journal,
}

/// One line: a message of `tracing`.
#[derive(Default, Serialize)]
pub(super) struct Line {
    time: String,
    level: &'static str,
    message: String,
    #[serde(flatten)]
    fields: Map<String, Value>,
    /// When the event happened, in Unix seconds.
    #[serde(skip)]
    at: Option<f64>,
    #[serde(skip)]
    is_event: bool,
}

impl Line {
    pub(super) fn of(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let mut line = Self {
            level: match *metadata.level() {
                Level::ERROR => "error",
                Level::WARN => "warn",
                Level::INFO => "info",
                _ => "debug",
            },
            is_event: [EVENT, DECIDER].contains(&metadata.target()),
            ..Self::default()
        };
        event.record(&mut line);
        line
    }

    /// A line with the number of lost lines.
    pub(super) fn lost(lines: u64) -> Self {
        Self {
            level: "warn",
            message: format!(
                "{lines} lines of this log were lost, because it was not read in time"
            ),
            fields: Map::from_iter([("lost".to_owned(), Value::from(lines))]),
            is_event: true,
            ..Self::default()
        }
    }

    /// The bytes that are written.
    pub(super) fn format(mut self, form: Form) -> Vec<u8> {
        self.time = humantime::format_rfc3339_millis(self.moment()).to_string();
        let mut text = match form {
            Form::Text => self.text(),
            // Strings, numbers and flags always have a JSON form.
            Form::Json => {
                let text = serde_json::to_string(&self).unwrap_or_default();
                escape::json(&text).into_owned()
            }
            Form::Journal => return self.record(),
        };
        text.push('\n');
        text.into_bytes()
    }

    fn text(&self) -> String {
        let mut text = format!("{} {:<5} {}", self.time, self.level, self.message);
        let fields = self.fields.iter().filter(|_| !self.is_event);
        for (name, value) in fields {
            // Writing to a string does not fail.
            let _written = write!(text, " {name}={value}");
        }
        // A line break or an escape sequence in a name or a path must not forge a line.
        escape::line(&text).into_owned()
    }

    /// Formats a record. The journal adds the time itself.
    fn record(&self) -> Vec<u8> {
        let mut record = Record::default();
        // journalctl(1) hides a message with control characters altogether.
        record.put("MESSAGE", &escape::line(&self.message));
        // syslog(3).
        let priority = match self.level {
            "error" => "3",
            "warn" => "4",
            "info" => "6",
            _ => "7",
        };
        record.put("PRIORITY", priority);
        record.put("SYSLOG_IDENTIFIER", "supervise");
        for (name, value) in &self.fields {
            // The journal's own `_PID` is the supervisor's, and `ID` alone would be ambiguous.
            let name = match name.as_str() {
                "id" => "EVENT_ID",
                "pid" if self.fields.contains_key("worker") => "PID_OF_WORKER",
                "pid" => "PID_OF_COMMAND",
                name => name,
            };
            match value {
                Value::String(text) => record.put(name, text),
                other => record.put(name, &other.to_string()),
            }
        }
        record.into_bytes()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a message that is not an event has no time of its own; nothing is decided by it"
    )]
    fn moment(&self) -> SystemTime {
        let at = self.at.and_then(|at| Duration::try_from_secs_f64(at).ok());
        at.and_then(|at| UNIX_EPOCH.checked_add(at))
            .unwrap_or_else(SystemTime::now)
    }

    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.fields.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Line {
    fn record_f64(&mut self, field: &Field, value: f64) {
        if self.is_event && field.name() == "at" {
            self.at = Some(value);
        } else {
            self.put(field, value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.put(field, text);
        }
    }
}
