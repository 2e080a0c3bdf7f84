//! `supervise upgrade`, and its two sides that are no client's: a binary that is asked whether it
//! could take over, and one that cannot and goes back.

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
        wire::{Status, UpgradesDoc},
    },
    driver::{VERSION, upgrade},
    host::{
        doctor,
        exec::{CAN, Inherited},
    },
};

/// A binary that has taken over answers within about 50 ms.
const ANSWERS: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_millis(20);

/// Answers whether this binary could take over the state on standard input, with this command line.
pub fn check(args: impl Iterator<Item = OsString>) -> u8 {
    let words = std::iter::once(OsString::from("supervise")).chain(args);
    match could(words) {
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

fn could(words: impl Iterator<Item = OsString>) -> Result<(), String> {
    let Command::Run(wishes) = super::parse(words).map_err(|usage| usage.text)? else {
        return Err("this command line is not a service's".to_owned());
    };
    let Loaded { spec, .. } = load(&wishes).map_err(|error| error.to_string())?;
    let available = doctor::available().map_err(|error| error.to_string())?;
    config::judge(&spec, available).map_err(|error| error.to_string())?;
    let mut text = Vec::new();
    let read = io::stdin().lock().read_to_end(&mut text);
    read.map_err(|error| format!("read the state: {error}"))?;
    upgrade::State::read(&text, &spec).map(drop)
}

/// Where this process was another binary before, that one goes on; else the message stays what is
/// to be said.
pub(super) fn or_go_back(inherited: Option<&Inherited>, message: &str) -> String {
    match inherited {
        None => message.to_owned(),
        Some(inherited) => upgrade::go_back(inherited, message),
    }
}

/// Asks a service to go on as the installed binary, and waits until that one answers.
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
    let taken = tokio::time::timeout(ANSWERS, taken_over(socket, &before)).await;
    Ok(match taken {
        Ok(Ok(status)) => print(&format!(
            "supervise {} goes on, with {} workers\n",
            status.version,
            status.workers.len()
        )),
        Ok(Err(why)) => fail(
            &format!("the upgrade failed: {why}; the old one goes on"),
            1,
        ),
        Err(_) => fail("the service does not answer any more", 1),
    })
}

/// The status as the new binary tells it, or why there is no new one.
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
        tokio::time::sleep(AGAIN).await;
    }
}

/// `None`: it says something else.
async fn status(socket: &Path) -> Result<Option<Status>, ClientError> {
    let (_, body) = Client::connect(socket).await?.get("/v1/status").await?;
    Ok(serde_json::from_str(&body).ok())
}
