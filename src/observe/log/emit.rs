//! Events of the supervisor as events of `tracing`.

use std::collections::BTreeMap;

use tracing::field::Value;

use crate::supervisor::event_format::{EventRecord, Field, Level};

use super::line::{DECIDER, EVENT};

/// The fields of one event by their names.
type Values = BTreeMap<&'static str, Box<dyn Value>>;

/// Sends an event to `tracing` (docs/decisions/0010-logging.md). `tracing` needs the names of all
/// fields at compile time; a field without a value is left out.
macro_rules! emit {
    ($target:expr, $level:ident, $values:expr, $message:expr) => {
        emit!(@ $target, $level, $values, $message,
            after_s age_s at available baseline budget budget_from cap cap_from cause ceiling
            ceiling_from command configured cut drain_s dry_run ends event freed from guessed id
            idle_s in_progress killed killed_in_s largest last limit memory peak pid processes
            ran report request request_age_s run server status summary tasks times version why
            window_s worker workers)
    };
    (@ $target:expr, $level:ident, $values:expr, $message:expr, $($name:ident)*) => {
        tracing::event!(
            target: $target,
            tracing::Level::$level,
            $($name = $values.get(stringify!($name)),)*
            "{}",
            $message
        )
    };
}

/// Writes an event to the log.
pub fn write_event(record: &EventRecord) {
    let (values, message) = (values(record), record.event.message());
    match record.event.level() {
        Level::Debug => emit!(DECIDER, DEBUG, values, message),
        Level::Info => emit!(EVENT, INFO, values, message),
        Level::Warn => emit!(EVENT, WARN, values, message),
        Level::Error => emit!(EVENT, ERROR, values, message),
    }
}

/// Whether events of this level are logged, kept and shown. Only the reasons of the decider depend
/// on the filter of the log.
pub fn is_wanted(level: Level) -> bool {
    level != Level::Debug || tracing::enabled!(target: DECIDER, tracing::Level::DEBUG)
}

fn values(record: &EventRecord) -> Values {
    let mut values = Values::new();
    values.insert("event", Box::new(record.event.kind()));
    values.insert("id", Box::new(record.id));
    values.insert("at", Box::new(record.at));
    let fields = record.event.fields().into_iter();
    values.extend(fields.map(|(name, field)| (name, value(field))));
    values
}

fn value(field: Field) -> Box<dyn Value> {
    match field {
        Field::Text(text) => Box::new(text),
        Field::Bytes(bytes) => Box::new(bytes.get()),
        Field::Seconds(time) => Box::new((time.as_secs_f64() * 1e3).round() / 1e3),
        Field::Number(number) => Box::new(number),
        Field::Flag(flag) => Box::new(flag),
    }
}
