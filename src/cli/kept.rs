//! Finds a service that has ended, and shows the events and reports that it has kept on disk.

use std::{
    env,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    Client, Form, Subject, report,
    run::{NotFound, WRONG_USAGE, fail, print_error, show_events},
};
use crate::{
    agent::kept::Archive, config, control::client, host::process::users, private_dir::PrivateDir,
};

/// A service that was found by its files on disk.
#[derive(Debug)]
pub(super) enum Elsewhere {
    /// The service is running, with this socket.
    Running(PathBuf),
    /// The service has ended. These are its events and reports.
    Ended(Archive),
}

/// Searches the disk for a service whose socket was not found.
pub(super) fn find_on_disk(wanted: &Client, not_found: &NotFound) -> Result<Elsewhere, String> {
    let why = &not_found.why;
    if not_found.others_run && wanted.name.is_none() {
        return Err(why.clone());
    }
    let here = env::current_dir().unwrap_or_default();
    let archive = choose_archive(
        Archive::find(&archive_directories(wanted)),
        wanted.name.as_deref(),
        &here,
    )
    .map_err(|more| format!("{why}; {more}"))?;
    let socket = &archive.about.socket;
    // If another user could write the file, it could name a socket of that user.
    if PrivateDir::open(&archive.path).is_ok() && client::is_live(socket) {
        return Ok(Elsewhere::Running(socket.clone()));
    }
    let name = &archive.about.name;
    print_error(&format!(
        "`{name}` is not running; showing what it kept in {}",
        archive.path.display()
    ));
    Ok(Elsewhere::Ended(archive))
}

/// Chooses a service: one with that name, preferably one that ran in this directory. Without a
/// name, the one that ran in this directory, or the only one. `all` is sorted, newest first.
fn choose_archive(all: Vec<Archive>, name: Option<&str>, here: &Path) -> Result<Archive, String> {
    let mut fitting: Vec<_> = all
        .into_iter()
        .filter(|one| name.is_none_or(|name| one.about.name == name))
        .collect();
    if let Some(at) = fitting.iter().position(|one| one.about.directory == here) {
        return Ok(fitting.swap_remove(at));
    }
    let several = fitting
        .windows(2)
        .any(|two| two[0].about.name != two[1].about.name);
    if name.is_none() && several {
        let kept: Vec<_> = fitting.iter().map(described).collect();
        return Err(format!(
            "reports and events of several services are kept: {}; name one of them",
            kept.join(", ")
        ));
    }
    if fitting.is_empty() {
        return Err("no reports or events of it are kept".to_owned());
    }
    Ok(fitting.swap_remove(0))
}

fn described(one: &Archive) -> String {
    let about = &one.about;
    format!("`{}` ({})", about.name, about.directory.display())
}

/// The directories that may have the archives of services.
fn archive_directories(wanted: &Client) -> Vec<PathBuf> {
    let given = wanted.kept.clone();
    let given = given.or_else(|| env::var_os("SUPERVISE_LEAKS_DIRECTORY").map(PathBuf::from));
    let usual = config::state_dirs(env::vars_os(), users::own_id());
    given.into_iter().chain(usual).collect()
}

/// Shows the kept events. Returns the exit status.
pub(super) fn events(archive: &Archive, follow: bool, json: bool) -> i32 {
    if follow {
        return fail(
            "the service has ended; there are no new events to follow",
            WRONG_USAGE,
        );
    }
    show_events(archive.events(), json);
    0
}

/// Shows a kept report. Returns the exit status.
pub(super) fn report(archive: &Archive, subject: Subject, form: Form) -> i32 {
    let reports = archive.reports();
    let ids: Vec<_> = reports.iter().map(|(id, _)| id.to_string()).collect();
    let documents = || {
        let texts = reports.iter().map(|(_, text)| serde_json::from_str(text));
        texts.filter_map(Result::ok).collect::<Vec<Value>>()
    };
    let document = match subject {
        Subject::Last if form == Form::Json => {
            return report::print_json(&Value::from(documents()));
        }
        Subject::Last => documents().pop(),
        Subject::Kept(id) => {
            let found = reports.iter().find(|(known, _)| *known == id);
            found.and_then(|(_, text)| serde_json::from_str(text).ok())
        }
        Subject::Live(worker) => {
            let text = format!(
                "no new report of {worker}: the service has ended; {}",
                list_kept(&ids)
            );
            return fail(&text, 1);
        }
    };
    match document {
        Some(document) => report::print(&document, form),
        None => fail(&format!("no such report; {}", list_kept(&ids)), 1),
    }
}

fn list_kept(ids: &[String]) -> String {
    if ids.is_empty() {
        return "no report is kept".to_owned();
    }
    format!("kept reports: {}", ids.join(", "))
}
