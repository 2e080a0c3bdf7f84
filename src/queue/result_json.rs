//! Writes an outcome as a line of JSON.

use std::io::{self, Write as _};

use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{Detail, Failure, Outcome, Verdict};
use crate::protocol::document::Raised;

/// Appends the JSON of `outcome` to `line`, without an end of line.
pub(super) fn write_line(outcome: &Outcome, line: &mut Vec<u8>) -> io::Result<()> {
    match &outcome.id {
        Some(id) => write!(line, "{{\"id\":{id}")?,
        None => write!(line, "{{\"id\":{}", outcome.seq)?,
    }
    match &outcome.verdict {
        // A line that is not JSON would make the journal unreadable.
        Verdict::Done(result) => match serde_json::from_slice::<IgnoredAny>(result)
            .map_err(|error| error.to_string())
            .and_then(|_| str::from_utf8(result).map_err(|error| error.to_string()))
        {
            Ok(result) => {
                line.extend_from_slice(b",\"ok\":true,\"result\":");
                let start = line.len();
                line.extend_from_slice(result.as_bytes());
                on_one_line(&mut line[start..]);
            }
            Err(error) => write_failure(&not_json(&error), line)?,
        },
        Verdict::Failed(failure) => write_failure(failure, line)?,
    }
    match outcome.worker {
        Some(worker) => write!(line, ",\"worker\":\"{worker}\"")?,
        None => write!(line, ",\"worker\":null")?,
    }
    let (seconds, micros) = (outcome.micros / 1_000_000, outcome.micros % 1_000_000);
    write!(line, ",\"seconds\":{seconds}.{micros:06}")?;
    match outcome.peak {
        Some(peak) => write!(line, ",\"peak\":{}}}", peak.get()),
        None => write!(line, ",\"peak\":null}}"),
    }
}

/// Replaces ends of line by spaces. Between the values of JSON both are white space.
fn on_one_line(json: &mut [u8]) {
    for byte in json {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

fn not_json(error: &str) -> Failure {
    Failure {
        cause: "unserializable".to_owned(),
        attempts: 1,
        detail: Detail::Message(format!("the result is not JSON: {error}")),
    }
}

fn write_failure(failure: &Failure, line: &mut Vec<u8>) -> io::Result<()> {
    line.extend_from_slice(b",\"ok\":false,\"error\":{\"type\":");
    match &failure.detail {
        Detail::Raised(body) => match Raised::read(body) {
            Some(raised) => write!(
                line,
                "{},\"message\":{},\"traceback\":{}",
                raised.kind,
                raised.message,
                raised.traceback.map_or("null", RawValue::get)
            )?,
            None => write_message(failure, &String::from_utf8_lossy(body), line)?,
        },
        Detail::Message(message) => write_message(failure, message, line)?,
    }
    line.extend_from_slice(b",\"cause\":");
    serde_json::to_writer(&mut *line, &failure.cause)?;
    write!(line, ",\"attempts\":{}}}", failure.attempts)
}

fn write_message(failure: &Failure, message: &str, line: &mut Vec<u8>) -> io::Result<()> {
    write!(line, "\"{}\",\"message\":", error_type(&failure.cause))?;
    serde_json::to_writer(&mut *line, message)?;
    line.extend_from_slice(b",\"traceback\":null");
    Ok(())
}

/// The `type` of an error that is not a (readable) exception of the task: the name of a Python
/// exception. A cause may have a detail after a colon (`exit:3`).
fn error_type(cause: &str) -> &'static str {
    match cause.split(':').next().unwrap_or_default() {
        "cap" => "MemoryCapExceeded",
        "timeout" => "TimeoutError",
        "exit" | "signal" => "WorkerDied",
        "unreadable" => "ValueError",
        "unserializable" => "TypeError",
        "start-failed" => "StartFailed",
        _ => "Exception",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Bytes, WorkerId};

    fn line(verdict: Verdict) -> String {
        let outcome = Outcome {
            seq: 3,
            id: None,
            worker: Some(WorkerId::FIRST),
            micros: 1_200,
            peak: Some(Bytes(12_345)),
            verdict,
        };
        let mut line = Vec::new();
        write_line(&outcome, &mut line).unwrap();
        String::from_utf8(line).unwrap()
    }

    fn error(cause: &str, detail: Detail) -> String {
        let failure = Failure {
            cause: cause.into(),
            attempts: 2,
            detail,
        };
        let line = line(Verdict::Failed(failure));
        let value: serde_json::Value = serde_json::from_str(&line).expect(&line);
        assert_eq!(value["ok"], false);
        let error = &value["error"];
        assert_eq!(
            (&error["cause"], &error["attempts"]),
            (&cause.into(), &2.into())
        );
        format!(
            "{}|{}|{}",
            error["type"], error["message"], error["traceback"]
        )
    }

    #[test]
    fn a_result_has_all_documented_fields() {
        let expected = "{\"id\":3,\"ok\":true,\"result\":[1, 2],\"worker\":\"w1\",\
                        \"seconds\":0.001200,\"peak\":12345}";
        assert_eq!(line(Verdict::Done((*b"[1,\n2]").into())), expected);
        let outcome = Outcome {
            seq: 3,
            id: Some("\"a\"".into()),
            worker: None,
            micros: 61_000_001,
            peak: None,
            verdict: Verdict::Done((*b"null").into()),
        };
        let mut line = Vec::new();
        write_line(&outcome, &mut line).unwrap();
        let expected = "{\"id\":\"a\",\"ok\":true,\"result\":null,\"worker\":null,\
                        \"seconds\":61.000001,\"peak\":null}";
        assert_eq!(String::from_utf8(line).unwrap(), expected);
    }

    #[test]
    fn a_result_that_is_not_json_is_a_failure() {
        for wrong in [&b"NaN"[..], b"", b"1\n2", b"\"\xff\"", b"\"\n\""] {
            let line = line(Verdict::Done(wrong.into()));
            let value: serde_json::Value = serde_json::from_str(&line).expect(&line);
            assert_eq!(value["error"]["cause"], "unserializable", "{line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn an_exception_is_written_as_its_worker_encoded_it() {
        let encoded = br#"{"type":"KeyError","message":"'a\n'","traceback":"File"}"#;
        let written = error("exception", Detail::Raised((*encoded).into()));
        assert_eq!(written, r#""KeyError"|"'a\n'"|"File""#);
        let encoded = br#"{"type":"E","message":"m","traceback":null,"more":1}"#;
        let written = error("exception", Detail::Raised((*encoded).into()));
        assert_eq!(written, r#""E"|"m"|null"#);
        let half = br#"{"type":"E","message":"\udc80","traceback":null}"#.to_vec();
        let failure = Failure {
            cause: "exception".into(),
            attempts: 1,
            detail: Detail::Raised(half.into()),
        };
        assert!(line(Verdict::Failed(failure)).contains(r#""message":"\udc80","#));
    }

    #[test]
    fn a_malformed_exception_becomes_the_message() {
        for encoded in [
            &b"so \"it\" \xff is"[..],
            br#"{"type":1,"message":"m"}"#,
            b"[]",
            b"",
        ] {
            let written = error("exception", Detail::Raised(encoded.into()));
            assert!(written.starts_with("\"Exception\"|"), "{written}");
        }
        let written = error("exception", Detail::Raised((*b"so \"it\" \xff").into()));
        assert_eq!(written, "\"Exception\"|\"so \\\"it\\\" \u{fffd}\"|null");
    }

    #[test]
    fn a_message_of_the_supervisor_has_the_type_of_its_cause() {
        for (cause, kind) in [
            ("cap", "MemoryCapExceeded"),
            ("timeout", "TimeoutError"),
            ("exit:3", "WorkerDied"),
            ("signal:SEGV", "WorkerDied"),
            ("unreadable", "ValueError"),
            ("start-failed", "StartFailed"),
        ] {
            let written = error(cause, Detail::Message("\"so\"".into()));
            assert_eq!(written, format!(r#""{kind}"|"\"so\""|null"#));
        }
    }
}
