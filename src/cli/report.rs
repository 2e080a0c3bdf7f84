//! Fetches a report and shows it in the requested format.

use std::{env, path::Path};

use serde_json::Value;

use crate::{
    control::client::{Client, ClientError},
    host::terminal,
    observe::report_page,
};

use super::{
    Form, Subject,
    run::{self, INTERNAL_ERROR, WIDTH, fail, refusal},
};

/// The width of a page if the width of the terminal is unknown, and the smallest width.
const WIDTH_UNKNOWN: usize = 80;
const WIDTH_MIN: usize = 40;

/// Shows a report. Returns the exit status.
pub(super) async fn show(socket: &Path, subject: Subject, form: Form) -> Result<i32, ClientError> {
    let client = Client::connect(socket).await?;
    let (code, body) = match subject {
        Subject::Last => client.get("/v1/reports").await?,
        Subject::Kept(report) => client.get(&format!("/v1/reports/{report}")).await?,
        Subject::Live(worker) => {
            let path = format!("/v1/workers/{worker}/report");
            client.post(&path, "").await?
        }
    };
    if code != 200 {
        return Ok(fail(&refusal(body), 1));
    }
    if form == Form::Json {
        return Ok(run::print_json(&body));
    }
    let document = match (subject, serde_json::from_str(&body)) {
        (Subject::Last, Ok(Value::Array(mut all))) => all.pop(),
        (Subject::Kept(_) | Subject::Live(_), Ok(document @ Value::Object(_))) => Some(document),
        (_, Ok(_)) => return Ok(fail("read the report: not a report", INTERNAL_ERROR)),
        (_, Err(error)) => return Ok(fail(&format!("read the report: {error}"), INTERNAL_ERROR)),
    };
    let Some(document) = document else {
        let text = "no report is kept yet. hint: make one with `supervise report WORKER`";
        return Ok(fail(text, 1));
    };
    Ok(print(&document, form))
}

/// Prints a report.
pub(super) fn print(document: &Value, form: Form) -> i32 {
    match form {
        Form::Json => print_json(document),
        Form::Dot => run::print(&report_page::dot(document)),
        Form::Page => {
            let here = env::current_dir().unwrap_or_default();
            run::print(&report_page::report(document, page_width(), &here))
        }
    }
}

/// The width of the terminal, within bounds.
pub(super) fn page_width() -> usize {
    let width = terminal::width().unwrap_or(WIDTH_UNKNOWN);
    width.clamp(WIDTH_MIN, WIDTH)
}

/// Prints a document as JSON.
pub(super) fn print_json(document: &Value) -> i32 {
    run::print_json(&document.to_string())
}
