//! One line on stderr for each report, for people, as JSON or as a record of the journal, and for
//! what else is traced.

use std::{
    env,
    fmt::{self, Write as _},
    fs::File,
    io,
    os::fd::AsFd as _,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    subscriber::{SetGlobalDefaultError, set_global_default},
};
use tracing_subscriber::{
    Layer,
    filter::LevelFilter,
    layer::{Context, SubscriberExt as _},
};

use crate::{
    escape,
    supervisor::{
        spec::{LogFormat, LogSpec},
        tell::{Fact, Level, Told},
    },
};

use super::{
    journal::{self, Journal, Record},
    sink::Sink,
};

/// Marks the lines that are reports: their figures are already in the sentence.
const REPORT: &str = "supervise::report";

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It cannot be written to.
    #[error("open the log on stderr: {0}")]
    Open(#[from] io::Error),
    /// There is one.
    #[error("start the log: {0}")]
    Twice(#[from] SetGlobalDefaultError),
}

/// The log of this process.
#[derive(Clone, Debug)]
pub struct Log {
    sink: Sink,
}

impl Log {
    /// Starts the log on stderr. Once for each process.
    pub fn start(spec: LogSpec) -> Result<Self, LogError> {
        // Not `io::stderr()`: its lock would be held for as long as a reader stalls, and a panic
        // in another thread would wait for it.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let lines = lines_for(spec.format, stderr)?;
        let sink = lines.sink.clone();
        let level = if spec.verbose {
            LevelFilter::DEBUG
        } else {
            LevelFilter::INFO
        };
        set_global_default(tracing_subscriber::registry().with(level).with(lines))?;
        Ok(Self { sink })
    }

    /// So many lines were lost since the start.
    pub fn lost(&self) -> u64 {
        self.sink.lost()
    }

    /// Waits until all is written, for `patience` at most. At exit.
    pub fn flush(&self, patience: Duration) {
        self.sink.flush(patience);
    }
}

/// How a line is written, now that it is known where it goes.
#[derive(Clone, Copy, Debug)]
enum Form {
    Text,
    Json,
    Journal,
}

fn lines_for(format: LogFormat, stderr: File) -> io::Result<Lines> {
    match format {
        LogFormat::Text => Lines::new(Form::Text, stderr),
        LogFormat::Json => Lines::new(Form::Json, stderr),
        LogFormat::Auto => {
            let stream = env::var_os("JOURNAL_STREAM");
            let is_behind = journal::is_behind(&stderr, stream.as_deref());
            let journal = is_behind.then(|| Journal::at(Path::new(journal::SOCKET)));
            match journal.flatten() {
                Some(journal) => Lines::new(Form::Journal, journal),
                None => Lines::new(Form::Text, stderr),
            }
        }
    }
}

/// Writes a report down.
pub fn tell(told: &Told) {
    let facts = told.report.facts().into_iter();
    let facts: Map<_, _> = facts
        .map(|(name, fact)| (name.to_owned(), value(fact)))
        .collect();
    let (id, at, event) = (told.id, told.at, told.report.kind());
    let (facts, message) = (Value::from(facts).to_string(), told.report.message());
    let facts = facts.as_str();
    match told.report.level() {
        Level::Info => tracing::info!(target: REPORT, id, at, event, facts, "{message}"),
        Level::Warn => tracing::warn!(target: REPORT, id, at, event, facts, "{message}"),
        Level::Error => tracing::error!(target: REPORT, id, at, event, facts, "{message}"),
    }
}

fn value(fact: Fact) -> Value {
    match fact {
        Fact::Text(text) => text.into(),
        Fact::Bytes(bytes) => bytes.get().into(),
        Fact::Seconds(time) => ((time.as_secs_f64() * 1e3).round() / 1e3).into(),
        Fact::Number(number) => number.into(),
        Fact::Flag(flag) => flag.into(),
    }
}

/// Puts lines together and gives them to the sink.
struct Lines {
    form: Form,
    sink: Sink,
}

impl Lines {
    fn new(form: Form, out: impl io::Write + Send + 'static) -> io::Result<Self> {
        let notice = move |lost| {
            let line = Line {
                level: "warn",
                message: format!("{lost} lines of this log were lost: it was not read in time"),
                fields: Map::from_iter([("lost".to_owned(), Value::from(lost))]),
                report: true,
                ..Line::default()
            };
            line.written(form)
        };
        let sink = Sink::start(out, notice)?;
        Ok(Self { form, sink })
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut line = Line {
            level: match *metadata.level() {
                tracing::Level::ERROR => "error",
                tracing::Level::WARN => "warn",
                tracing::Level::INFO => "info",
                _ => "debug",
            },
            report: metadata.target() == REPORT,
            ..Line::default()
        };
        event.record(&mut line);
        self.sink.line(line.written(self.form));
    }
}

/// One line, being put together.
#[derive(Default, Serialize)]
struct Line {
    time: String,
    level: &'static str,
    message: String,
    #[serde(flatten)]
    fields: Map<String, Value>,
    #[serde(skip)]
    at: Option<f64>,
    #[serde(skip)]
    report: bool,
}

impl Line {
    fn written(mut self, form: Form) -> Vec<u8> {
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

    /// The journal notes the time itself.
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
            // The journal's own `_PID` is ours, and its own identities are not events.
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

    fn text(&self) -> String {
        let mut text = format!("{} {:<5} ", self.time, self.level);
        text.push_str(&self.message);
        let fields = self.fields.iter().filter(|_| !self.report);
        for (name, value) in fields {
            // Writing to a string does not fail.
            let _written = write!(text, " {name}={value}");
        }
        // A line break or an escape sequence in what others named must not forge a line.
        escape::line(&text).into_owned()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a line that is no report says when it was written; nothing is decided by it"
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
        if self.report && field.name() == "at" {
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
        if self.report && field.name() == "facts" {
            let facts: Map<String, Value> = serde_json::from_str(value).unwrap_or_default();
            self.fields.extend(facts);
        } else {
            self.put(field, value);
        }
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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, pipe};

    use crate::{supervisor::report::Report, units::WorkerId};

    use super::*;

    /// What the log says while `work` is done.
    fn logged(form: Form, work: impl FnOnce()) -> String {
        let (mut reader, writer) = pipe().unwrap();
        let lines = Lines::new(form, writer).unwrap();
        let subscriber = tracing_subscriber::registry()
            .with(LevelFilter::INFO)
            .with(lines);
        tracing::subscriber::with_default(subscriber, work);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }

    fn seen() -> Told {
        Told {
            id: 7,
            at: 1_757_073_600.25,
            mono_ns: 7,
            report: Report::WorkerSeen {
                worker: WorkerId::FIRST,
                pid: 41,
            },
        }
    }

    #[test]
    fn a_report_is_a_sentence_for_people() {
        let text = logged(Form::Text, || tell(&seen()));
        assert_eq!(text, "2025-09-05T12:00:00.250Z info  w1 seen as pid 41\n");
    }

    #[test]
    fn a_report_is_an_object_with_its_figures_for_programs() {
        let text = logged(Form::Json, || tell(&seen()));
        assert_eq!(
            text,
            "{\"time\":\"2025-09-05T12:00:00.250Z\",\"level\":\"info\",\
             \"message\":\"w1 seen as pid 41\",\
             \"event\":\"worker-seen\",\"id\":7,\"pid\":41,\"worker\":\"w1\"}\n"
        );
    }

    #[test]
    fn a_report_is_a_record_with_its_figures_for_the_journal() {
        let text = logged(Form::Journal, || {
            tell(&seen());
            tracing::warn!(tries = 3, "odd");
        });
        assert_eq!(
            text,
            "MESSAGE=w1 seen as pid 41\nPRIORITY=6\nSYSLOG_IDENTIFIER=supervise\n\
             EVENT=worker-seen\nEVENT_ID=7\nPID_OF_WORKER=41\nWORKER=w1\n\
             MESSAGE=odd\nPRIORITY=4\nSYSLOG_IDENTIFIER=supervise\nTRIES=3\n"
        );
    }

    #[test]
    fn what_is_no_report_shows_its_fields_and_cannot_forge_a_line() {
        let text = logged(Form::Text, || {
            tracing::warn!(tries = 3, "bad\nname \u{1b}[2J");
            tracing::debug!("only for us");
        });
        assert!(
            text.ends_with(" warn  bad\\nname \\u{1b}[2J tries=3\n"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
    }
}
