//! Why a template or a worker did not start, in words.
//!
//! What raised has said so itself, as JSON (`type`, `message`, `traceback`). What was ended could
//! not: its words are made here, in the same form.

use std::time::Duration;

use serde_json::{Value, json};

use crate::supervisor::{
    event::{Ended, Oom},
    pool::event::TemplateEnd,
    report::Limits,
};

/// The words of something that could not say any itself.
pub(super) fn words(kind: &str, message: &str) -> Vec<u8> {
    let words = json!({ "type": kind, "message": message, "traceback": null });
    words.to_string().into_bytes()
}

/// The words for a process that ended while it started.
pub(super) fn death(what: &str, (ended, oom): (Ended, Oom), limits: &Limits) -> Vec<u8> {
    let kind = match oom {
        Oom::No => "WorkerDied",
        Oom::Cap | Oom::Budget | Oom::Elsewhere => "MemoryCapExceeded",
    };
    words(kind, &format!("{what}: {}", end(ended, oom, limits)))
}

/// What is said of a template that is started anew.
pub(super) fn anew(how: TemplateEnd, rest: Duration, limits: &Limits) -> String {
    let how = match how {
        TemplateEnd::Refused => "it cannot start".to_owned(),
        TemplateEnd::Died(ended, oom) => end(ended, oom, limits),
    };
    let when = if rest.is_zero() {
        String::new()
    } else {
        format!(" in {}", humantime::format_duration(rest))
    };
    format!("the template has ended ({how}); it is started anew with all workers{when}")
}

fn end(ended: Ended, oom: Oom, limits: &Limits) -> String {
    let of = |limit: &crate::supervisor::report::Effective| {
        limit
            .bytes
            .map_or_else(String::new, |bytes| format!(" of {bytes}"))
    };
    match (oom, ended) {
        (Oom::Cap, _) => format!("it met its memory cap{}", of(&limits.cap)),
        (Oom::Budget, _) => format!("the memory budget{} was used up", of(&limits.budget)),
        (Oom::Elsewhere, _) => {
            "the kernel killed it for memory, at a limit that is not of this pool".to_owned()
        }
        (Oom::No, Ended::Exit(status)) => format!("it exited with status {status}"),
        (Oom::No, Ended::Signal(signal)) => format!("signal {signal}"),
        (Oom::No, Ended::Unseen) => "how is not known".to_owned(),
    }
}

/// Why no worker starts, from the words of the one that could not.
pub(super) fn failure(words: &[u8]) -> String {
    let said = read(words);
    let text = word(&said, "traceback").or_else(|| word(&said, "message"));
    let text = text.unwrap_or("it ended before it could say why");
    format!("no worker can be started:\n{}", text.trim_end())
}

/// The same in one line.
pub(super) fn why(words: &[u8]) -> Option<String> {
    let said = read(words);
    let message = word(&said, "message")?;
    Some(match word(&said, "type") {
        Some(kind) => format!("{kind}: {message}"),
        None => message.to_owned(),
    })
}

fn read(words: &[u8]) -> Value {
    serde_json::from_slice(words).unwrap_or_default()
}

fn word<'a>(said: &'a Value, name: &str) -> Option<&'a str> {
    said.get(name).and_then(Value::as_str)
}
