//! The log: one line on stderr for each event, as text, as JSON or as a record of the journal.
//! Events go through `tracing` with typed fields, and so does every other diagnostic message.

mod emit;
mod journal;
mod line;
mod sink;

#[cfg(test)]
mod tests;

use std::{env, ffi::OsStr, fs::File, io, os::fd::AsFd as _, path::Path, time::Duration};

use tracing::{
    Event, Subscriber,
    subscriber::{SetGlobalDefaultError, set_global_default},
};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, ParseError, Targets},
    layer::{Context, SubscriberExt as _},
};

use crate::supervisor::spec::{LogFormat, LogSpec};

use journal::Journal;
use line::{Form, Line};
use sink::Sink;

pub use emit::{is_wanted, write_event};

/// The variable with a filter such as `debug` or `supervise::decider=debug`.
const FILTER: &str = "SUPERVISE_LOG";
/// The prefix of the targets of our own messages.
const OURS: &str = "supervise";

/// Why the log cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Stderr cannot be written to.
    #[error("open the log on stderr: {0}")]
    Open(#[from] io::Error),
    /// The log was started before.
    #[error("start the log: {0}")]
    Twice(#[from] SetGlobalDefaultError),
    /// The filter is not valid.
    #[error("SUPERVISE_LOG: {0}; a filter is a level, or TARGET=LEVEL, or several with commas")]
    Filter(#[from] ParseError),
}

/// The log of this process.
#[derive(Clone, Debug)]
pub struct Log {
    sink: Sink,
}

impl Log {
    /// Starts the log on stderr. Can be called once in a process.
    pub fn start(spec: LogSpec) -> Result<Self, LogError> {
        let filter = filter(env::var_os(FILTER).as_deref(), spec.verbose)?;
        // `io::stderr()` would hold its lock while a slow reader blocks it, and a panic in another
        // thread would wait for that lock.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let layer = layer_for(spec.format, stderr)?;
        let sink = layer.sink.clone();
        set_global_default(tracing_subscriber::registry().with(filter).with(layer))?;
        Ok(Self { sink })
    }

    /// Lines lost since the start.
    pub fn lost(&self) -> u64 {
        self.sink.lost()
    }

    /// Waits until all lines are written, for `time_limit` at most. Called at exit.
    pub fn flush(&self, time_limit: Duration) {
        self.sink.flush(time_limit);
    }
}

/// Which messages are logged: those of the variable; without it `info` and above, and with
/// `verbose` our own `debug` messages too.
fn filter(variable: Option<&OsStr>, verbose: bool) -> Result<Targets, ParseError> {
    let text = variable.map(OsStr::to_string_lossy);
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        let filter = Targets::new().with_default(LevelFilter::INFO);
        return Ok(if verbose {
            filter.with_target(OURS, LevelFilter::DEBUG)
        } else {
            filter
        });
    };
    let filter: Targets = text.parse()?;
    // A filter that names targets only must not silence all others.
    Ok(match filter.default_level() {
        Some(_) => filter,
        None => filter.with_default(LevelFilter::INFO),
    })
}

fn layer_for(format: LogFormat, stderr: File) -> io::Result<LogLayer> {
    match format {
        LogFormat::Text => LogLayer::new(Form::Text, stderr),
        LogFormat::Json => LogLayer::new(Form::Json, stderr),
        LogFormat::Auto => {
            let stream = env::var_os("JOURNAL_STREAM");
            let is_behind = journal::is_behind(&stderr, stream.as_deref());
            let journal = is_behind.then(|| Journal::at(Path::new(journal::SOCKET)));
            match journal.flatten() {
                Some(journal) => LogLayer::new(Form::Journal, journal),
                None => LogLayer::new(Form::Text, stderr),
            }
        }
    }
}

/// Formats each message as one line and passes it to the sink.
struct LogLayer {
    form: Form,
    sink: Sink,
}

impl LogLayer {
    fn new(form: Form, out: impl io::Write + Send + 'static) -> io::Result<Self> {
        let sink = Sink::start(out, move |lost| Line::lost(lost).format(form))?;
        Ok(Self { form, sink })
    }
}

impl<S: Subscriber> Layer<S> for LogLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.sink.line(Line::of(event).format(self.form));
    }
}
