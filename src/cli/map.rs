//! `supervise map`, and the pool of a `supervise.Executor`.

use std::{env, ffi::OsString, io, os::unix::net::UnixStream, path::PathBuf};

use clap::Args;

use super::{
    PoolOptions, interpreter,
    map_files::{self, Output},
    progress::{Input, ProgressDisplay},
    run::{INTERNAL_ERROR, fail, in_runtime, machine, print_error},
};
use crate::{
    agent::pool::Orders,
    config::{self, CommandLine, Loaded, Origin, Setting, Value},
    control::{
        self, ControlError,
        listeners::{Gate, Listeners},
    },
    driver::pool::{Observer, Parts, PoolDriver, Tally},
    host::{
        diagnosis::doctor,
        process::{open_files, users},
    },
    queue::{Format, Journal, Lines, Order, Results, Sink, Source, executor},
    supervisor::{
        pool::{
            input::Over,
            spec::{Call, PoolSettings, PoolSpec, StartMethod},
        },
        spec::Spec,
    },
    units::{Bytes, Signal},
};

/// Descriptors for each worker: sockets and pidfds of the worker, of its replacement and of the
/// process that forks them, the outputs of both workers, and the events of the cgroup.
const FILES_PER_WORKER: u64 = 12;
/// Descriptors of `supervise` itself, including a reserve.
const OWN_FILES: u64 = 64;

const FAILED: i32 = 1;
const WRONG_USAGE: i32 = 2;
const GAVE_UP: i32 = 75;
const SETUP_FAILED: i32 = 125;
const NOT_FOUND: i32 = 127;

pub(super) const NOTES: &str = "\
A task is a line of JSON: an object with `args` and optionally `id` and `key`, or any other value.
Without an `id`, the line number (from 1) is the id. Tasks with the same `key` need about the same
memory. With --plain, each line is a string. Each task has exactly one line of result, with `id`,
`ok`, `worker`, `seconds` and `peak` (bytes), and either `result` or an `error` of `type`,
`message`, `traceback`, `cause` and `attempts`. Output of a task appears on standard error
immediately, each line with the task's id. The current directory is on sys.path.

Ctrl-C finishes the running tasks and starts no others. A second Ctrl-C stops the running tasks, and
--resume runs them again. The output is not changed until the first worker is ready.

Exit status: 0 all tasks returned; 1 tasks failed, in this run or an earlier one; 2 wrong usage; 75
no worker could be started; 125 setup failed or --resume was refused; 127 no Python; 128+n ended by
signal n; 141 the reader of standard output has closed it (as `head` does).";

/// `supervise map`.
#[derive(Args, Debug)]
pub struct MapArgs {
    /// Function to call for each task [default: `function` in CONFIG]
    #[arg(value_name = "MODULE:FUNCTION")]
    function: Option<String>,
    /// Read settings from CONFIG
    #[arg(long, short, value_name = "CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: PoolOptions,
}

/// The pool of an executor.
#[derive(Args, Debug)]
pub struct PoolArgs {
    /// The executor's socket, inherited
    #[arg(long)]
    fd: i32,
    #[command(flatten)]
    options: PoolOptions,
}

/// Loads the settings of a pool.
///
/// # Errors
/// The exit status; the errors are printed.
fn load(
    command_line: &CommandLine,
    environ: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(Spec, PoolSettings), i32> {
    let loaded = config::load(command_line, environ, &machine());
    let Loaded { spec, warnings, .. } =
        loaded.map_err(|error| fail(&error.to_string(), error.status()))?;
    warnings.iter().for_each(|warning| print_error(warning));
    let settings = spec.pool.clone().unwrap_or_default();
    Ok((spec, settings))
}

fn orders(settings: &PoolSettings) -> Orders {
    Orders {
        function: settings.function.clone(),
        call: call_name(settings.call).to_owned(),
        imports: settings.imports.clone(),
        initializer: settings.initializer.clone(),
        warm: match settings.start {
            StartMethod::Auto | StartMethod::Template => Orders::ALL,
            StartMethod::Fresh => 0,
        },
    }
}

const fn call_name(call: Call) -> &'static str {
    match call {
        Call::One => "one",
        Call::Args => "args",
        Call::Kwargs => "kwargs",
    }
}

/// Runs a function over lines. Returns the exit status.
pub fn map(args: &MapArgs) -> i32 {
    let function = args.function.iter();
    let function = function.map(|name| Setting {
        key: "pool.function".to_owned(),
        value: Value::Untyped(name.clone()),
        origin: Origin::Flag("MODULE:FUNCTION".to_owned()),
    });
    let command_line = CommandLine {
        is_pool: true,
        config: args.config.clone(),
        command: Vec::new(),
        flags: args.options.0.iter().cloned().chain(function).collect(),
    };
    let (spec, settings) = match load(&command_line, env::vars_os()) {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    if settings.function.is_none() {
        return fail(
            "no function to call; write MODULE:FUNCTION, such as `etl:convert`, or set `function` \
             in the table [pool] of CONFIG",
            WRONG_USAGE,
        );
    }
    in_runtime(async {
        let (endpoints, failed_before) = match open_endpoints(&settings) {
            Ok(opened) => opened,
            Err(message) => return fail(&message, SETUP_FAILED),
        };
        let status = run(spec, &settings, None, endpoints).await;
        if status == 0 && failed_before > 0 {
            print_error(&format!(
                "tasks that failed in an earlier run: {failed_before}. hint: --retry-failed runs \
                 them again"
            ));
            return FAILED;
        }
        status
    })
}

/// The source of the tasks, the destination of the results, and the display of the progress.
type Endpoints = (Box<dyn Source>, Box<dyn Sink>, Box<dyn Observer>);

/// Opens the input, the output and the journal. Nothing is written before the first worker is
/// ready. Also returns the number of tasks that failed in earlier runs and do not run again.
fn open_endpoints(settings: &PoolSettings) -> Result<(Endpoints, u64), String> {
    let input = map_files::open_input(settings.input.as_deref())?;
    let output = Output::open(settings.output.as_deref())?;
    output.check_differs(&input, "the input")?;
    let task = task_of(settings);
    let journal = match &settings.journal {
        Some(path) if settings.resumes => {
            Some(Journal::resume(path, &task, settings.retries_failed))
        }
        Some(path) => Some(Journal::create(path, &task)),
        None => None,
    };
    let journal = journal.transpose().map_err(|error| error.to_string())?;
    if let Some(journal) = &journal {
        output.check_differs(journal.file(), "the journal")?;
    }
    let order = if settings.is_ordered {
        Order::AsGiven
    } else {
        Order::AsTheyEnd
    };
    let format = if settings.is_plain {
        Format::Plain
    } else {
        Format::Json
    };
    let done = journal.as_ref().map(Journal::done).unwrap_or_default();
    let failed = journal.as_ref().map_or(0, Journal::failed);
    let input = Input::new(input, done);
    let progress = ProgressDisplay::new(input.position()).map_err(|error| error.to_string())?;
    let lines = Lines::start(input, format, journal.as_ref()).map_err(|error| error.to_string())?;
    let (gone, is_stream) = (output.reader_gone(), output.is_stream());
    let results = Results::start(output, order, journal).map_err(|error| error.to_string())?;
    let results = results.with_reader_gone(gone).with_stream(is_stream);
    let endpoints: Endpoints = (Box::new(lines), Box::new(results), Box::new(progress));
    Ok((endpoints, failed))
}

/// Describes what a run does with each line. A journal is valid for only one such description.
fn task_of(settings: &PoolSettings) -> String {
    let call = match settings.call {
        Call::One => String::new(),
        call => format!(" --call {}", call_name(call)),
    };
    let plain = if settings.is_plain { " --plain" } else { "" };
    let function = settings.function.as_deref().unwrap_or_default();
    format!("{function}{call}{plain}")
}

/// Serves an executor. Returns the exit status.
pub fn pool(args: &PoolArgs) -> i32 {
    let command_line = CommandLine {
        is_pool: true,
        flags: args.options.0.clone(),
        ..CommandLine::default()
    };
    // The program configures its executor. Variables are only for services and `map`.
    let environ = env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        !name.starts_with("SUPERVISE_")
    });
    let (spec, settings) = match load(&command_line, environ) {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    let client = match users::inherited(args.fd) {
        Ok(fd) => UnixStream::from(fd),
        Err(error) => return fail(&format!("--fd {}: {error}", args.fd), WRONG_USAGE),
    };
    in_runtime(async {
        let mut client = client;
        let setup = match executor::read_setup(&mut client) {
            Ok(setup) => setup,
            Err(error) => {
                return fail(
                    &format!("read the executor's setup: {error}"),
                    INTERNAL_ERROR,
                );
            }
        };
        let (source, sink) = match executor::open(client) {
            Ok(endpoints) => endpoints,
            Err(error) => return fail(&error.to_string(), SETUP_FAILED),
        };
        let quiet = match ProgressDisplay::quiet() {
            Ok(quiet) => quiet,
            Err(error) => return fail(&error.to_string(), SETUP_FAILED),
        };
        let endpoints: Endpoints = (Box::new(source), Box::new(sink), Box::new(quiet));
        run(spec, &settings, Some(setup), endpoints).await
    })
}

async fn run(
    mut spec: Spec,
    settings: &PoolSettings,
    setup: Option<Vec<u8>>,
    (source, sink, observer): Endpoints,
) -> i32 {
    let python = match interpreter::find(settings.python.as_deref()) {
        Ok(python) => python,
        Err(message) => return fail(&message, NOT_FOUND),
    };
    spec.command.argv = vec![python.clone().into()];
    spec.command.program = python;
    // If the available memory cannot be read, the setup of the pool fails below with the reason.
    let available = doctor::available().unwrap_or(Bytes(u64::MAX));
    if let Some((name, why)) = config::too_small(&spec.memory, available).first() {
        return fail(&format!("{}: {why}", name.flag()), WRONG_USAGE);
    }
    let listeners = open_control(&mut spec, settings);
    let pool = PoolSpec::of(&spec, settings, cores());
    if let Err(message) = check_open_files(pool.workers, open_files::raised_limit()) {
        return fail(&message, SETUP_FAILED);
    }
    let parts = Parts {
        pool,
        spec,
        orders: orders(settings),
        forks_always: settings.start == StartMethod::Template,
        setup,
        source,
        sink,
        directory: settings.directory.clone(),
        observer,
    };
    let (driver, questions) = match PoolDriver::new(parts) {
        Ok(driver) => driver,
        Err(error) => return fail(&format!("failed to initialise: {error}"), SETUP_FAILED),
    };
    let server = listeners.map(|(listeners, gate)| {
        (
            tokio::spawn(control::server::run(listeners, questions)),
            gate,
        )
    });
    let ended = driver.run().await;
    if let Some((server, gate)) = server {
        gate.close();
        // The driver was dropped, so the listeners close. Answers that have begun are still sent.
        let _ = server.await;
    }
    match ended {
        Ok(tally) => exit_status(tally),
        // The client of the pool has gone.
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => 0,
        // The reader of the output has gone: the status is that of a program killed by SIGPIPE.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 128 + Signal::PIPE.0,
        Err(error) => fail(&error.to_string(), SETUP_FAILED),
    }
}

/// Opens the control socket. If that fails, the tasks run without one. If another pool with the
/// same derived name runs, the name of this one also gets the process id.
fn open_control(spec: &mut Spec, settings: &PoolSettings) -> Option<(Listeners, Gate)> {
    let opened = match Listeners::open(&spec.control, &spec.name, None) {
        Err(ControlError::AlreadyRunning { .. }) if !settings.is_named => {
            spec.name = format!("{}-{}", spec.name, std::process::id());
            let name = format!("{}.sock", spec.name);
            spec.control.socket.set_file_name(name);
            Listeners::open(&spec.control, &spec.name, None)
        }
        opened => opened,
    };
    match opened {
        Ok(opened) => Some(opened),
        Err(error) => {
            print_error(&format!(
                "{error}; `status` and `events` do not work for this pool"
            ));
            None
        }
    }
}

fn cores() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(cores).unwrap_or(1)
}

/// Checks that there are enough descriptors for all workers. Otherwise starts would fail again and
/// again.
fn check_open_files(workers: u32, limit: u64) -> Result<(), String> {
    let max_workers = limit.saturating_sub(OWN_FILES) / FILES_PER_WORKER;
    if u64::from(workers) <= max_workers {
        return Ok(());
    }
    Err(format!(
        "--workers {workers}: the limit of {limit} open files is enough for {max_workers} workers. \
         hint: raise the hard limit (`ulimit -Hn`)"
    ))
}

const fn exit_status(tally: Tally) -> i32 {
    match tally.over {
        Over::GaveUp => GAVE_UP,
        Over::Stopped => match tally.stopped_by {
            Some(signal) => 128 + signal.0,
            None => FAILED,
        },
        Over::Failed => FAILED,
        Over::Done if tally.failed > 0 => FAILED,
        Over::Done => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_workers_than_open_files_allow_are_refused() {
        assert_eq!(check_open_files(80, 1024), Ok(()));
        let error = check_open_files(81, 1024).unwrap_err();
        let expected = "--workers 81: the limit of 1024 open files is enough for 80 workers. hint:";
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(check_open_files(4096, open_files::LIMIT_MAX), Ok(()));
    }
}
