//! Why a template or a worker did not start.
//!
//! A process that raised an exception reports it as JSON (`type`, `message`, `traceback`). For a
//! process that was killed or exited, the report is made here, in the same form.

use std::time::Duration;

use serde_json::Value;

use crate::{
    protocol::document,
    supervisor::{
        event::Limits,
        input::{Ended, Oom},
        pool::input::TemplateEnd,
    },
};

/// The error report for a process that ended while starting.
pub(super) fn ended_early(what: &str, (ended, oom): (Ended, Oom), limits: &Limits) -> Vec<u8> {
    let kind = match oom {
        Oom::No => "WorkerDied",
        Oom::Cap | Oom::Budget | Oom::Elsewhere => "MemoryCapExceeded",
    };
    document::error(
        kind,
        &format!("{what}: {}", describe_end(ended, oom, limits)),
    )
}

/// The message about a template that has ended and is restarted after `pause`.
pub(super) fn template_restart(how: TemplateEnd, pause: Duration, limits: &Limits) -> String {
    let how = match how {
        TemplateEnd::Refused => "it could not start".to_owned(),
        TemplateEnd::Died(ended, oom) => describe_end(ended, oom, limits),
    };
    let when = if pause.is_zero() {
        String::new()
    } else {
        format!(" in {}", humantime::format_duration(pause))
    };
    format!("the template has ended ({how}); restarting it and all workers{when}")
}

fn describe_end(ended: Ended, oom: Oom, limits: &Limits) -> String {
    let of = |limit: &crate::supervisor::event::Effective| {
        limit
            .bytes
            .map_or_else(String::new, |bytes| format!(" of {bytes}"))
    };
    match (oom, ended) {
        (Oom::Cap, _) => format!("it reached its memory cap{}", of(&limits.cap)),
        (Oom::Budget, _) => format!("the memory budget{} was exhausted", of(&limits.budget)),
        (Oom::Elsewhere, _) => {
            "the kernel killed it at a memory limit outside of this pool".to_owned()
        }
        (Oom::No, Ended::Exit(status)) => format!("it exited with status {status}"),
        (Oom::No, Ended::Signal(signal)) => format!("signal {signal}"),
        (Oom::No, Ended::Unseen) => "its exit status is unknown".to_owned(),
    }
}

/// The final message of a pool that cannot start a worker, with the traceback if there is one.
pub(super) fn full_message(error: &[u8]) -> String {
    let error = parse(error);
    let text = field(&error, "traceback").or_else(|| field(&error, "message"));
    let text = text.unwrap_or("it ended before it could report why");
    format!("no worker can be started:\n{}", text.trim_end())
}

/// The error of an error report in one line.
pub(super) fn one_line(error: &[u8]) -> Option<String> {
    let error = parse(error);
    let message = field(&error, "message")?;
    Some(match field(&error, "type") {
        Some(kind) => format!("{kind}: {message}"),
        None => message.to_owned(),
    })
}

fn parse(error: &[u8]) -> Value {
    serde_json::from_slice(error).unwrap_or_default()
}

fn field<'a>(error: &'a Value, name: &str) -> Option<&'a str> {
    error.get(name).and_then(Value::as_str)
}
