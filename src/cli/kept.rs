//! Events and reports of a service that has ended, from what it has kept on disk.

use std::{
    env,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{agent::kept::Archive, config, control::client, host::users, private_dir::PrivateDir};

use super::{
    Client, Form, Subject, report,
    run::{NotFound, WRONG_USE, complain, fail, show_events},
};

/// A service that was not found by its socket, but by what it keeps on disk.
#[derive(Debug)]
pub(super) enum Elsewhere {
    /// It is running, with this socket.
    Running(PathBuf),
    /// It has ended and has left this.
    Over(Archive),
}

/// Looks on disk for a service whose socket was not found.
pub(super) fn look(wanted: &Client, not_found: &NotFound) -> Result<Elsewhere, String> {
    let why = &not_found.why;
    if not_found.others_run && wanted.name.is_none() {
        return Err(why.clone());
    }
    let here = env::current_dir().unwrap_or_default();
    let archive = choose(Archive::find(&bases(wanted)), wanted.name.as_deref(), &here)
        .map_err(|more| format!("{why}; {more}"))?;
    let socket = &archive.about.socket;
    // Another user who could write that file could name a socket of their own in it.
    if PrivateDir::open(&archive.path).is_ok() && client::is_live(socket) {
        return Ok(Elsewhere::Running(socket.clone()));
    }
    let name = &archive.about.name;
    complain(&format!(
        "`{name}` is not running; this was kept in {}",
        archive.path.display()
    ));
    Ok(Elsewhere::Over(archive))
}

/// The service of that name, preferably one that ran in this directory. Without a name, the one
/// that ran in this directory, or the only one. `all` has the newest first.
fn choose(all: Vec<Archive>, name: Option<&str>, here: &Path) -> Result<Archive, String> {
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
        let kept: Vec<_> = fitting.iter().map(named).collect();
        return Err(format!(
            "reports and events of several services are kept: {}; choose one by its name",
            kept.join(", ")
        ));
    }
    if fitting.is_empty() {
        return Err("and no reports or events of it are kept".to_owned());
    }
    Ok(fitting.swap_remove(0))
}

fn named(one: &Archive) -> String {
    let about = &one.about;
    format!("`{}` ({})", about.name, about.directory.display())
}

fn bases(wanted: &Client) -> Vec<PathBuf> {
    let given = wanted.kept.clone();
    let given = given.or_else(|| env::var_os("SUPERVISE_LEAKS_DIRECTORY").map(PathBuf::from));
    let usual = config::state_dirs(env::vars_os(), users::own_id());
    given.into_iter().chain(usual).collect()
}

/// Shows the kept events; the result is the exit status.
pub(super) fn events(archive: &Archive, follow: bool, json: bool) -> i32 {
    if follow {
        return fail(
            "the service is over: there are no further events to follow",
            WRONG_USE,
        );
    }
    show_events(archive.events(), json);
    0
}

/// Shows a kept report; the result is the exit status.
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
                "{worker} cannot be asked: the service is over; {}",
                kept(&ids)
            );
            return fail(&text, 1);
        }
    };
    match document {
        Some(document) => report::print(&document, form),
        None => fail(&format!("no such report; {}", kept(&ids)), 1),
    }
}

fn kept(ids: &[String]) -> String {
    if ids.is_empty() {
        return "no report is kept".to_owned();
    }
    format!("kept are {}", ids.join(", "))
}
