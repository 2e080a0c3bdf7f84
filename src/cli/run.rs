//! Runs the commands.

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
    pages, report, suggest, upgrade,
};
use crate::{
    agent::kept::Archive,
    config::{self, CommandLine, ConfigError, Loaded, Machine},
    control::{
        self,
        client::{self, ClientError},
        documents,
        listeners::Listeners,
    },
    driver::{
        Driver,
        upgrade::{State, read_or_go_back},
    },
    escape,
    host::{
        clock,
        diagnosis::doctor,
        process::{exec::Inherited, users},
    },
    observe::{log::Log, status_page},
    private_dir,
    supervisor::{snapshot::Snapshot, spec::Spec},
    units::{Bytes, Timestamp},
};

pub(super) const WRONG_USAGE: i32 = 2;
pub(super) const INTERNAL_ERROR: i32 = 70;
const BAD_CONFIGURATION: i32 = 78;
const SETUP_FAILED: i32 = 125;
/// Maximum wait for the last lines of the log: standard error may be a pipe without a reader.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum width of a page.
pub(super) const WIDTH: usize = 120;

/// Runs a command. Returns the exit status.
pub fn run(command: Command) -> i32 {
    match command {
        Command::Run(command_line) => supervise(&command_line),
        Command::Map(args) => super::map::map(&args),
        Command::Pool(args) => super::map::pool(&args),
        Command::Check(command_line) => check(&command_line),
        Command::Config(mode) => print(&config::template(mode)),
        Command::Status { client, json } => {
            ask(&client, async |socket| status(&socket, json).await)
        }
        Command::Events {
            client,
            follow,
            json,
        } => ask_or_read_kept(
            &client,
            async |socket| events(&socket, follow, json).await,
            |archive| kept::events(archive, follow, json),
        ),
        Command::Report {
            client,
            subject,
            form,
        } => ask_or_read_kept(
            &client,
            async |socket| report::show(&socket, subject, form).await,
            |archive| kept::report(archive, subject, form),
        ),
        Command::Suggest { client, json } => ask_or_read_kept(
            &client,
            async |socket| suggest::show(&socket, json).await,
            |archive| suggest::of_ended(archive, json),
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
        Command::Scale { client, workers } => {
            let path = format!("/v1/scale?workers={workers}");
            ask(&client, async |socket| change(&socket, &path).await)
        }
        Command::Upgrade { client } => ask(&client, async |socket| upgrade::ask(&socket).await),
        Command::Stop { client, now } => {
            let path = if now { "/v1/stop?now" } else { "/v1/stop" };
            ask(&client, async |socket| change(&socket, path).await)
        }
        Command::Doctor => diagnose(),
        Command::Man => match pages::man() {
            Ok(page) => write_out(&String::from_utf8_lossy(&page)),
            Err(error) => fail(&error.to_string(), INTERNAL_ERROR),
        },
        Command::Completions(shell) => {
            write_out(&String::from_utf8_lossy(&pages::completions(shell)))
        }
    }
}

/// Prints an error of the command line, or help. Returns the exit status.
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

/// Starts a service, or takes over a service from another binary.
fn supervise(command_line: &CommandLine) -> i32 {
    let inherited = Inherited::find();
    let refuse = |message: &str, status: i32| {
        fail(&upgrade::or_go_back(inherited.as_ref(), message), status)
    };
    let spec = match load(command_line) {
        Ok(Loaded { spec, warnings, .. }) => {
            warnings.iter().for_each(|warning| print_error(warning));
            spec
        }
        Err(error) => return refuse(&error.to_string(), error.status()),
    };
    if spec.pool.is_some() {
        let text = "the file configures a pool. hint: run it with `supervise map --config FILE`";
        return refuse(text, BAD_CONFIGURATION);
    }
    let available = match doctor::available() {
        Ok(available) => available,
        Err(error) => return refuse(&error.to_string(), SETUP_FAILED),
    };
    if let Err(error) = config::judge(&spec, available) {
        return refuse(&error.to_string(), error.status());
    }
    let state = inherited
        .as_ref()
        .map(|inherited| read_or_go_back(inherited, &spec));
    let state = match state.transpose() {
        Ok(state) => state,
        Err(why) => return fail(&why, SETUP_FAILED),
    };
    match Log::start(spec.log) {
        Ok(log) => {
            let failed = inherited.and_then(|inherited| inherited.failed);
            in_runtime(serve(spec, log, state.map(|state| (state, failed))))
        }
        Err(error) => refuse(&error.to_string(), SETUP_FAILED),
    }
}

async fn serve(spec: Spec, log: Log, mut handed: Option<(State, Option<String>)>) -> i32 {
    let kept = handed.as_mut().and_then(|(state, _)| state.listeners());
    let (listeners, gate) = match Listeners::open(&spec.control, &spec.name, kept) {
        Ok(opened) => opened,
        Err(error) => return fail(&error.to_string(), SETUP_FAILED),
    };
    let driver = match handed {
        None => Driver::new(spec, log, gate),
        Some((state, failed)) => Driver::take_over(spec, (log, gate), state, failed),
    };
    let (driver, questions) = match driver {
        Ok(driver) => driver,
        Err(error) => return fail(&format!("failed to initialise: {error}"), SETUP_FAILED),
    };
    let server = tokio::spawn(control::server::run(listeners, questions));
    let (status, log) = driver.run().await;
    // The driver was dropped, so the listeners close. Answers that have begun are still sent.
    let _ = server.await;
    log.flush(LOG_FLUSH_TIMEOUT);
    status
}

fn check(command_line: &CommandLine) -> i32 {
    let spec = match load(command_line) {
        Ok(loaded) => {
            let hints = loaded.hints.iter().map(|hint| format!("hint: {hint}"));
            let all = loaded.warnings.into_iter().chain(hints);
            all.for_each(|line| print_error(&line));
            loaded.spec
        }
        Err(error) => return fail(&error.to_string(), error.status()),
    };
    let available = doctor::available().unwrap_or(Bytes(u64::MAX));
    match config::judge(&spec, available) {
        Ok(()) => print(&config::render(&spec)),
        Err(error) => fail(&error.to_string(), error.status()),
    }
}

pub(super) fn load(command_line: &CommandLine) -> Result<Loaded, ConfigError> {
    config::load(command_line, env::vars_os(), &machine())
}

pub(super) fn machine() -> Machine {
    Machine {
        uid: users::own_id(),
        user_exists: users::exists,
        unusable,
    }
}

/// Why a directory cannot be used for files of `supervise`; `None`: it can.
pub(super) fn unusable(directory: &Path) -> Option<String> {
    private_dir::check(directory)
        .err()
        .map(|error| error.to_string())
}

fn diagnose() -> i32 {
    match doctor::examine() {
        Ok(diagnosis) => print(&diagnosis.to_string()),
        Err(error) => fail(&error.to_string(), SETUP_FAILED),
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
    let status: documents::Status = match serde_json::from_str(&body) {
        Ok(status) => status,
        Err(error) => return Ok(fail(&format!("read the status: {error}"), INTERNAL_ERROR)),
    };
    let now = Duration::try_from_secs_f64(clock::unix_seconds()).unwrap_or_default();
    let started = Duration::try_from_secs_f64(status.started).unwrap_or_default();
    let about = status_page::About {
        pid: status.pid,
        version: status.version.clone(),
        up: now.saturating_sub(started),
        now: Timestamp::default().later(now),
    };
    match Snapshot::try_from(status) {
        Ok(snapshot) => Ok(print(&status_page::table(&snapshot, &about, WIDTH))),
        Err(error) => Ok(fail(&error.to_string(), INTERNAL_ERROR)),
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

/// Shows events until all are shown or the reader closes the pipe.
pub(super) fn show_events(documents: impl IntoIterator<Item = String>, json: bool) {
    let mut documents = documents.into_iter();
    let _ = documents.try_for_each(|document| show_event(&document, json));
}

fn show_event(document: &str, json: bool) -> ControlFlow<()> {
    let status = if json {
        print_json(document)
    } else {
        print(&format!("{}\n", event_line(document)))
    };
    if status == 0 {
        ControlFlow::Continue(())
    } else {
        ControlFlow::Break(())
    }
}

/// An event as a line of text. A document that cannot be parsed is shown unchanged.
fn event_line(document: &str) -> String {
    match serde_json::from_str::<documents::EventDoc>(document) {
        Ok(event) => {
            let at = Duration::try_from_secs_f64(event.at).unwrap_or_default();
            let at = humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + at);
            // Text of other programs may contain a line feed, which must not look like a new event.
            let (kind, message) = (escape::line(&event.event), escape::line(&event.message));
            format!("{at} {kind:<13} {message}")
        }
        Err(_) => escape::line(document).into_owned(),
    }
}

/// Requests a change, and waits until it is done or refused.
async fn change(socket: &Path, path: &str) -> Result<i32, ClientError> {
    let (code, body) = client::Client::connect(socket)
        .await?
        .post(path, "")
        .await?;
    if code == 200 {
        Ok(print(&format!("{}\n", field_of("done", body))))
    } else {
        Ok(fail(&refusal(body), 1))
    }
}

/// The error message of a response.
pub(super) fn refusal(body: String) -> String {
    field_of("error", body)
}

/// A text field of a document. A document without it is shown unchanged.
fn field_of(name: &str, body: String) -> String {
    let document: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    let text = document.get(name).and_then(serde_json::Value::as_str);
    escape::line(text.unwrap_or(body.trim_end())).into_owned()
}

/// Sends a request to a running service, or uses the archive of a service that has ended.
fn ask_or_read_kept(
    wanted: &Client,
    request: impl AsyncFnOnce(PathBuf) -> Result<i32, ClientError>,
    read_kept: impl FnOnce(&Archive) -> i32,
) -> i32 {
    let not_found = match find(wanted) {
        Ok(socket) => return ask_at(socket, request),
        Err(not_found) => not_found,
    };
    match kept::find_on_disk(wanted, &not_found) {
        Ok(Elsewhere::Running(socket)) => ask_at(socket, request),
        Ok(Elsewhere::Ended(archive)) => read_kept(&archive),
        Err(message) => fail(&message, WRONG_USAGE),
    }
}

fn ask(wanted: &Client, request: impl AsyncFnOnce(PathBuf) -> Result<i32, ClientError>) -> i32 {
    match find(wanted) {
        Ok(socket) => ask_at(socket, request),
        Err(not_found) => fail(&not_found.why, WRONG_USAGE),
    }
}

fn ask_at(socket: PathBuf, request: impl AsyncFnOnce(PathBuf) -> Result<i32, ClientError>) -> i32 {
    match in_runtime(request(socket)) {
        Ok(status) => status,
        Err(error) => fail(&error.to_string(), 1),
    }
}

/// Why no socket of a service was found.
#[derive(Debug)]
pub(super) struct NotFound {
    pub(super) why: String,
    /// Several services run, and the command line does not name one.
    pub(super) others_run: bool,
}

/// Finds the service by its socket or name. Without both, it must be the only one that runs.
fn find(wanted: &Client) -> Result<PathBuf, NotFound> {
    if let Some(socket) = &wanted.socket {
        return Ok(socket.clone());
    }
    let directories = config::runtime_dirs(env::vars_os(), users::own_id());
    let name = wanted.name.as_deref();
    let mut first_error = None;
    let mut others_run = false;
    for directory in &directories {
        // In a directory that another user can change, a process of that user may answer.
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
    let none = || "no runtime directory".to_owned();
    Err(NotFound {
        why: first_error.unwrap_or_else(none),
        others_run,
    })
}

/// Why another user can put sockets into a directory; `None`: no other user can.
fn unsafe_for_clients(directory: &Path) -> Option<String> {
    let opened = private_dir::PrivateDir::open(directory).err();
    let refused = opened.filter(|error| error.kind() == io::ErrorKind::PermissionDenied);
    refused.map(|error| error.to_string())
}

/// Runs `work` on this thread. When a thread ends, the kernel signals the processes that it has
/// started (`PR_SET_PDEATHSIG`), so no other thread may start one.
pub(super) fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => unreachable!("no epoll instance: {error}"),
    }
}

/// Prints text for people. Parts of it come from other programs, so control characters are escaped.
pub(super) fn print(text: &str) -> i32 {
    write_out(&escape::lines(text))
}

/// Prints a JSON document. Control characters are escaped, because a terminal may show it.
pub(super) fn print_json(document: &str) -> i32 {
    write_out(&format!("{}\n", escape::json(document)))
}

/// Writes to standard output. A broken pipe is a success: the reader needs no more.
fn write_out(text: &str) -> i32 {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => 0,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => fail(&format!("write to standard output: {error}"), 1),
    }
}

pub(super) fn fail(message: &str, status: i32) -> i32 {
    print_error(message);
    status
}

pub(super) fn print_error(message: &str) {
    // If standard error is closed, the message is lost.
    let message = escape::lines(message.trim_end());
    let _ = writeln!(io::stderr(), "supervise: {message}");
}
