//! Fetches a report and shows it in the form that was wished for.

use std::path::Path;

use serde_json::Value;

use crate::{
    control::client::{Client, ClientError},
    observe::page,
};

use super::{
    Form, Subject,
    run::{self, OUR_BUG, WIDTH, fail, refusal},
};

/// Shows it; the result is the exit status.
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
        (_, Ok(_)) => return Ok(fail("read the report: it is none", OUR_BUG)),
        (_, Err(error)) => return Ok(fail(&format!("read the report: {error}"), OUR_BUG)),
    };
    let Some(document) = document else {
        let text = "no report is kept yet; ask a worker now with `supervise report WORKER`";
        return Ok(fail(text, 1));
    };
    Ok(print(&document, form))
}

/// Prints one report.
pub(super) fn print(document: &Value, form: Form) -> i32 {
    match form {
        Form::Json => print_json(document),
        Form::Dot => run::print(&page::dot(document)),
        Form::Page => run::print(&page::report(document, WIDTH)),
    }
}

/// Prints a document as it is.
pub(super) fn print_json(document: &Value) -> i32 {
    run::print_json(&document.to_string())
}
