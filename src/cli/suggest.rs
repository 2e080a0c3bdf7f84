//! Suggests limits from the history of a service.

use std::path::Path;

use super::{
    report::page_width,
    run::{self, INTERNAL_ERROR, fail, refusal},
};
use crate::{
    agent::kept::Archive,
    control::client::{Client, ClientError},
    observe::suggestion_page,
    supervisor::history::History,
};

/// Asks a running service. Returns the exit status.
pub(super) async fn show(socket: &Path, json: bool) -> Result<i32, ClientError> {
    let client = Client::connect(socket).await?;
    let (code, body) = client.get("/v1/history").await?;
    if code != 200 {
        return Ok(fail(&refusal(body), 1));
    }
    let history = serde_json::from_str::<History>(&body).map_err(|error| error.to_string());
    let history = history.and_then(|history| {
        history.check()?;
        Ok(history)
    });
    Ok(match history {
        Ok(history) => print(&history, json),
        Err(why) => fail(&format!("read the history: {why}"), INTERNAL_ERROR),
    })
}

/// Reads what an ended service has kept. Returns the exit status.
pub(super) fn of_ended(archive: &Archive, json: bool) -> i32 {
    match archive.history() {
        Ok(Some(history)) => print(&history, json),
        Ok(None) => fail("no history is kept", 1),
        Err(why) => fail(&format!("read the history: {why}"), 1),
    }
}

fn print(history: &History, json: bool) -> i32 {
    let suggestion = history.suggest();
    let printed = if json {
        match serde_json::to_string(&suggestion) {
            Ok(text) => run::print_json(&text),
            Err(error) => fail(&error.to_string(), INTERNAL_ERROR),
        }
    } else {
        run::print(&suggestion_page::page(&suggestion, page_width()))
    };
    if printed == 0 && suggestion.limits.is_none() {
        return 1;
    }
    printed
}
