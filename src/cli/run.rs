//! Wires each command to the rooms that carry it out.

use std::{
    env,
    io::{self, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Client, Command, Target, Usage,
    kept::{self, Elsewhere},
    pages, report, upgrade,
};
use crate::{
    agent::kept::Archive,
    config::{self, ConfigError, Loaded, Machine, Wishes},
    control::{
        self,
        client::{self, ClientError},
        doors::Doors,
        wire,
    },
    driver::{
        Driver,
        upgrade::{State, read_or_go_back},
    },
    escape,
    host::{clock, doctor, exec::Inherited, users},
    observe::{log::Log, view},
    private_dir,
    supervisor::{report::Snapshot, spec::Spec},
    units::{Bytes, Timestamp},
};

pub(super) const WRONG_USE: i32 = 2;
pub(super) const OUR_BUG: i32 = 70;
const NOT_SET_UP: i32 = 125;
/// The last lines of the log are waited for as long; standard error may be a pipe nobody reads.
const FAREWELL: Duration = Duration::from_secs(1);
/// A page is no wider than this.
pub(super) const WIDTH: usize = 120;

/// Carries out a command; the result is the exit status.
pub fn run(command: Command) -> i32 {
    match command {
        Command::Run(wishes) => supervise(&wishes),
        Command::Map(args) => super::map::map(&args),
        Command::Pool(args) => super::map::pool(&args),
        Command::Check(wishes) => check(&wishes),
        Command::Status { client, json } => {
            ask(&client, async |socket| status(&socket, json).await)
        }
        Command::Events {
            client,
            follow,
            json,
        } => ask_or_look(
            &client,
            async |socket| events(&socket, follow, json).await,
            |archive| kept::events(archive, follow, json),
        ),
        Command::Report {
            client,
            subject,
            form,
        } => ask_or_look(
            &client,
            async |socket| report::show(&socket, subject, form).await,
            |archive| kept::report(archive, subject, form),
        ),
        Command::Recycle { client, target } => {
            let path = match target {
                Target::All => "/v1/recycle".to_owned(),
                Target::Worker(worker) => format!("/v1/workers/{worker}/recycle"),
            };
            ask(&client, async |socket| change(&socket, &path).await)
        }
        Command::Reload { client } => {
            ask(&client, async |socket| change(&socket, "/v1/reload").await)
        }
        Command::Upgrade { client } => ask(&client, async |socket| upgrade::ask(&socket).await),
        Command::Stop { client, now } => {
            let path = if now { "/v1/stop?now" } else { "/v1/stop" };
            ask(&client, async |socket| change(&socket, path).await)
        }
        Command::Doctor => diagnose(),
        Command::Man => match pages::man() {
            Ok(page) => write_out(&String::from_utf8_lossy(&page)),
            Err(error) => fail(&error.to_string(), OUR_BUG),
        },
        Command::Completions(shell) => {
            write_out(&String::from_utf8_lossy(&pages::completions(shell)))
        }
    }
}

/// What is wrong with the words of the command line, or the help that they asked for.
pub fn explain(usage: &Usage) -> i32 {
    if usage.status == 0 {
        print(&usage.text)
    } else {
        let inherited = Inherited::find();
        fail(
            &upgrade::or_go_back(inherited.as_ref(), &usage.text),
            usage.status,
        )
    }
}

/// Runs a service from its beginning, or goes on with one that another binary has handed over.
fn supervise(wishes: &Wishes) -> i32 {
    let inherited = Inherited::find();
    let refuse = |message: &str, status: i32| {
        fail(&upgrade::or_go_back(inherited.as_ref(), message), status)
    };
    let spec = match load(wishes) {
        Ok(Loaded { spec, warnings }) => {
            warnings.iter().for_each(|warning| complain(warning));
            spec
        }
        Err(error) => return refuse(&error.to_string(), error.status()),
    };
    let available = match doctor::available() {
        Ok(available) => available,
        Err(error) => return refuse(&error.to_string(), NOT_SET_UP),
    };
    if let Err(error) = config::judge(&spec, available) {
        return refuse(&error.to_string(), error.status());
    }
    let state = inherited
        .as_ref()
        .map(|inherited| read_or_go_back(inherited, &spec));
    let state = match state.transpose() {
        Ok(state) => state,
        Err(why) => return fail(&why, NOT_SET_UP),
    };
    match Log::start(spec.log) {
        Ok(log) => {
            let failed = inherited.and_then(|inherited| inherited.failed);
            in_runtime(serve(spec, log, state.map(|state| (state, failed))))
        }
        Err(error) => refuse(&error.to_string(), NOT_SET_UP),
    }
}

async fn serve(spec: Spec, log: Log, mut handed: Option<(State, Option<String>)>) -> i32 {
    let kept = handed.as_mut().and_then(|(state, _)| state.doors());
    let (doors, keys) = match Doors::open(&spec.control, &spec.name, kept) {
        Ok(opened) => opened,
        Err(error) => return fail(&error.to_string(), NOT_SET_UP),
    };
    let driver = match handed {
        None => Driver::new(spec, log, keys),
        Some((state, failed)) => Driver::take_over(spec, (log, keys), state, failed),
    };
    let (driver, questions) = match driver {
        Ok(driver) => driver,
        Err(error) => return fail(&format!("take hold of this machine: {error}"), NOT_SET_UP),
    };
    let doors = tokio::spawn(control::server::run(doors, questions));
    let (status, log) = driver.run().await;
    // The driver is gone, so that the doors close; answers under way are still delivered.
    let _ = doors.await;
    log.flush(FAREWELL);
    status
}

fn check(wishes: &Wishes) -> i32 {
    let spec = match load(wishes) {
        Ok(Loaded { spec, warnings }) => {
            warnings.iter().for_each(|warning| complain(warning));
            spec
        }
        Err(error) => return fail(&error.to_string(), error.status()),
    };
    let available = doctor::available().unwrap_or(Bytes(u64::MAX));
    match config::judge(&spec, available) {
        Ok(()) => print(&config::render(&spec)),
        Err(error) => fail(&error.to_string(), error.status()),
    }
}

pub(super) fn load(wishes: &Wishes) -> Result<Loaded, ConfigError> {
    let machine = Machine {
        uid: users::own_id(),
        user_exists: users::exists,
        unusable,
    };
    config::load(wishes, env::vars_os(), &machine)
}

/// Why a directory cannot hold our files; `None`: it can.
pub(super) fn unusable(directory: &Path) -> Option<String> {
    private_dir::check(directory)
        .err()
        .map(|error| error.to_string())
}

fn diagnose() -> i32 {
    match doctor::examine() {
        Ok(diagnosis) => print(&diagnosis.to_string()),
        Err(error) => fail(&error.to_string(), NOT_SET_UP),
    }
}

async fn status(socket: &Path, json: bool) -> Result<i32, ClientError> {
    let (code, body) = client::Client::connect(socket)
        .await?
        .get("/v1/status")
        .await?;
    if code != 200 {
        return Ok(fail(&refusal(body), 1));
    }
    if json {
        return Ok(print_json(&body));
    }
    let status: wire::Status = match serde_json::from_str(&body) {
        Ok(status) => status,
        Err(error) => return Ok(fail(&format!("read the status: {error}"), OUR_BUG)),
    };
    let now = Duration::try_from_secs_f64(clock::unix_seconds()).unwrap_or_default();
    let started = Duration::try_from_secs_f64(status.started).unwrap_or_default();
    let about = view::About {
        pid: status.pid,
        version: status.version.clone(),
        up: now.saturating_sub(started),
        now: Timestamp::default().later(now),
    };
    match Snapshot::try_from(status) {
        Ok(snapshot) => Ok(print(&view::table(&snapshot, &about, WIDTH))),
        Err(error) => Ok(fail(&error.to_string(), OUR_BUG)),
    }
}

async fn events(socket: &Path, follow: bool, json: bool) -> Result<i32, ClientError> {
    let client = client::Client::connect(socket).await?;
    if follow {
        client
            .follow("/v1/events?follow", |message| {
                show_event(&message.data, json)
            })
            .await?;
        return Ok(0);
    }
    let (code, body) = client.get("/v1/events").await?;
    let documents: Vec<serde_json::Value> = match serde_json::from_str(&body) {
        Ok(documents) if code == 200 => documents,
        Ok(_) | Err(_) => return Ok(fail(&refusal(body), 1)),
    };
    show_events(documents.iter().map(ToString::to_string), json);
    Ok(0)
}

/// Shows events until the reader closes the pipe.
pub(super) fn show_events(documents: impl IntoIterator<Item = String>, json: bool) {
    let mut documents = documents.into_iter();
    let _enough = documents.try_for_each(|document| show_event(&document, json));
}

fn show_event(document: &str, json: bool) -> ControlFlow<()> {
    let status = if json {
        print_json(document)
    } else {
        print(&format!("{}\n", in_words(document)))
    };
    if status == 0 {
        ControlFlow::Continue(())
    } else {
        ControlFlow::Break(())
    }
}

/// One event for people; what cannot be read is shown as it is.
fn in_words(document: &str) -> String {
    match serde_json::from_str::<wire::EventDoc>(document) {
        Ok(event) => {
            let at = Duration::try_from_secs_f64(event.at).unwrap_or_default();
            let at = humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + at);
            // A line feed in text of another program must not look like the next event.
            let (kind, message) = (escape::line(&event.event), escape::line(&event.message));
            format!("{at} {kind:<13} {message}")
        }
        Err(_) => escape::line(document).into_owned(),
    }
}

/// Asks for a change and waits until it is made or refused.
async fn change(socket: &Path, path: &str) -> Result<i32, ClientError> {
    let (code, body) = client::Client::connect(socket)
        .await?
        .post(path, "")
        .await?;
    if code == 200 {
        Ok(print(&format!("{}\n", word("done", body))))
    } else {
        Ok(fail(&refusal(body), 1))
    }
}

/// Why something was not done.
pub(super) fn refusal(body: String) -> String {
    word("error", body)
}

/// One word of a document; what cannot be read is shown as it is.
fn word(name: &str, body: String) -> String {
    let document: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    let word = document.get(name).and_then(serde_json::Value::as_str);
    escape::line(word.unwrap_or(body.trim_end())).into_owned()
}

/// Asks a running service, or shows what a service that has ended has kept.
fn ask_or_look(
    wanted: &Client,
    question: impl AsyncFnOnce(PathBuf) -> Result<i32, ClientError>,
    over: impl FnOnce(&Archive) -> i32,
) -> i32 {
    let not_found = match find(wanted) {
        Ok(socket) => return ask_at(socket, question),
        Err(not_found) => not_found,
    };
    match kept::look(wanted, &not_found) {
        Ok(Elsewhere::Running(socket)) => ask_at(socket, question),
        Ok(Elsewhere::Over(archive)) => over(&archive),
        Err(message) => fail(&message, WRONG_USE),
    }
}

fn ask(wanted: &Client, question: impl AsyncFnOnce(PathBuf) -> Result<i32, ClientError>) -> i32 {
    match find(wanted) {
        Ok(socket) => ask_at(socket, question),
        Err(not_found) => fail(&not_found.why, WRONG_USE),
    }
}

fn ask_at(socket: PathBuf, question: impl AsyncFnOnce(PathBuf) -> Result<i32, ClientError>) -> i32 {
    match in_runtime(question(socket)) {
        Ok(status) => status,
        Err(error) => fail(&error.to_string(), 1),
    }
}

/// Why no socket of a service was found.
#[derive(Debug)]
pub(super) struct NotFound {
    pub(super) why: String,
    /// Several services run, and it is not clear which one is meant.
    pub(super) others_run: bool,
}

/// The service that is meant: the one of that socket or name, or the only one that runs.
fn find(wanted: &Client) -> Result<PathBuf, NotFound> {
    if let Some(socket) = &wanted.socket {
        return Ok(socket.clone());
    }
    let directories = config::runtime_dirs(env::vars_os(), users::own_id());
    let name = wanted.name.as_deref();
    let mut first_error = None;
    let mut others_run = false;
    for directory in &directories {
        // In a directory that another user can change, any process may answer.
        if let Some(why) = unsafe_for_clients(directory) {
            first_error.get_or_insert(why);
            continue;
        }
        match client::find(directory, name) {
            Ok(socket) => return Ok(socket),
            Err(error) => {
                others_run |= matches!(error, client::FindError::Several { .. });
                first_error.get_or_insert_with(|| error.to_string());
            }
        }
    }
    let none = || "no directory to look for services in".to_owned();
    Err(NotFound {
        why: first_error.unwrap_or_else(none),
        others_run,
    })
}

/// Why another user can put sockets there; `None`: none can.
fn unsafe_for_clients(directory: &Path) -> Option<String> {
    let opened = private_dir::PrivateDir::open(directory).err();
    let refused = opened.filter(|error| error.kind() == io::ErrorKind::PermissionDenied);
    refused.map(|error| error.to_string())
}

/// One thread: the command dies with the one that started it, and that must be one that lives.
pub(super) fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => unreachable!("the kernel gives us no epoll: {error}"),
    }
}

/// Prints text for people. Control characters are escaped: parts of it come from other programs,
/// and must not control the terminal.
pub(super) fn print(text: &str) -> i32 {
    write_out(&escape::lines(text))
}

/// Prints a JSON document, which a terminal may show as well.
pub(super) fn print_json(document: &str) -> i32 {
    write_out(&format!("{}\n", escape::json(document)))
}

/// A broken pipe is a quiet success: the reader has seen enough.
fn write_out(text: &str) -> i32 {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => 0,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => fail(&format!("write the answer: {error}"), 1),
    }
}

pub(super) fn fail(message: &str, status: i32) -> i32 {
    complain(message);
    status
}

pub(super) fn complain(message: &str) {
    // Where standard error is closed nobody can be told.
    let message = escape::lines(message.trim_end());
    let _ = writeln!(io::stderr(), "supervise: {message}");
}
