//! `supervise upgrade`, and two parts of an upgrade that the new binary runs: the check whether it
//! can take over, and the return to the old binary if it cannot.

use std::{
    ffi::OsString,
    io::{self, Read as _},
    path::Path,
    time::Duration,
};

use super::{
    Command,
    run::{fail, load, print},
};
use crate::{
    config::{self, Loaded},
    control::{
        client::{Client, ClientError},
        documents::{Status, UpgradesDoc},
    },
    driver::{VERSION, upgrade},
    host::{
        diagnosis::doctor,
        process::exec::{CAN, Inherited},
    },
};

/// Maximum wait for the new binary. It usually answers within about 50 ms.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Checks whether this binary could take over the state on standard input, with this command line.
pub fn check(args: impl Iterator<Item = OsString>) -> u8 {
    let words = std::iter::once(OsString::from("supervise")).chain(args);
    match try_take_over(words) {
        Ok(()) => {
            print(&format!("{CAN}{VERSION}\n"));
            0
        }
        Err(why) => {
            print(&format!("{why}\n"));
            1
        }
    }
}

fn try_take_over(words: impl Iterator<Item = OsString>) -> Result<(), String> {
    let Command::Run(command_line) = super::parse(words).map_err(|usage| usage.text)? else {
        return Err("this is not the command line of a service".to_owned());
    };
    let Loaded { spec, .. } = load(&command_line).map_err(|error| error.to_string())?;
    let available = doctor::available().map_err(|error| error.to_string())?;
    config::judge(&spec, available).map_err(|error| error.to_string())?;
    let mut text = Vec::new();
    let read = io::stdin().lock().read_to_end(&mut text);
    read.map_err(|error| format!("read the state: {error}"))?;
    upgrade::State::read(&text, &spec).map(drop)
}

/// If another binary has executed this one, returns to that binary. Otherwise returns the message,
/// which the caller prints.
pub(super) fn or_go_back(inherited: Option<&Inherited>, message: &str) -> String {
    match inherited {
        None => message.to_owned(),
        Some(inherited) => upgrade::go_back(inherited, message),
    }
}

/// Requests an upgrade of a service, and waits until the new binary answers.
pub(super) async fn ask(socket: &Path) -> Result<i32, ClientError> {
    let before = status(socket).await?.map(|status| status.upgrades);
    let before = before.unwrap_or_default();
    let (code, body) = Client::connect(socket)
        .await?
        .post("/v1/upgrade", "")
        .await?;
    if code != 200 {
        return Ok(fail(&super::run::refusal(body), 1));
    }
    let taken = tokio::time::timeout(UPGRADE_TIMEOUT, taken_over(socket, &before)).await;
    Ok(match taken {
        Ok(Ok(status)) => print(&format!(
            "supervise {} has taken over; workers: {}\n",
            status.version,
            status.workers.len()
        )),
        Ok(Err(why)) => fail(
            &format!("the upgrade failed: {why}; the old binary continues"),
            1,
        ),
        Err(_) => fail("the service does not answer any more", 1),
    })
}

/// The status of the new binary, or why the upgrade failed.
async fn taken_over(socket: &Path, before: &UpgradesDoc) -> Result<Status, String> {
    loop {
        if let Ok(Some(status)) = status(socket).await {
            if status.upgrades.done > before.done {
                return Ok(status);
            }
            if status.upgrades.failed > before.failed {
                return Err(status.upgrades.failed_why.unwrap_or_default());
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The status of a service; `None`: the response is not a status.
async fn status(socket: &Path) -> Result<Option<Status>, ClientError> {
    let (_, body) = Client::connect(socket).await?.get("/v1/status").await?;
    Ok(serde_json::from_str(&body).ok())
}
