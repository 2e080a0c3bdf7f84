//! `supervise map`, and the pool that a `supervise.Executor` starts.

use std::{env, io, os::unix::net::UnixStream, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::{
    interpreter,
    map_files::{self, Output},
    progress::{Input, ProgressDisplay},
    run::{OUR_BUG, complain, fail, in_runtime},
};
use crate::{
    agent::pool::Orders,
    config,
    driver::pool::{Observer, Parts, PoolDriver, Tally},
    host::{doctor, open_files, users},
    queue::{Format, Journal, Lines, Order, Results, Sink, Source, executor},
    supervisor::{
        pool::{event::Over, spec::PoolSpec},
        spec::{CommandSpec, Limit, MemorySpec, Spec},
    },
    units::{Bytes, Signal, Size},
};

/// Descriptors for each worker: sockets and pidfds of the worker, of its successor and of the
/// process that forks them, the outputs of both workers, and the events of the control group.
const FILES_PER_WORKER: u64 = 12;
/// Descriptors of `supervise` itself, with some in reserve.
const OWN_FILES: u64 = 64;

const FAILED: i32 = 1;
const WRONG_USE: i32 = 2;
const GAVE_UP: i32 = 75;
const NOT_SET_UP: i32 = 125;
const NOT_FOUND: i32 = 127;

pub(super) const NOTES: &str = "\
A task is a line of JSON: an object with `args` and optionally `id` and `key`, or any other value.
Without an `id`, the line number (from 1) is the id. Tasks with the same `key` need about the same
memory. With --plain, each line is a string. Each task has exactly one line of result, with `id`,
`ok`, `worker`, `seconds` and `peak` (bytes), and either `result` or an `error` of `type`,
`message`, `traceback`, `cause` and `attempts`. Output of a task appears on standard error
immediately, each line with the task's id. The current directory is on sys.path.

Ctrl-C finishes the running tasks and starts no others; a second Ctrl-C stops them, and --resume
runs them again. The output stays unchanged until the first worker is ready.

Exit status: 0 all tasks returned; 1 tasks failed, in this run or an earlier one; 2 wrong usage; 75
no worker could be started; 125 setup failed or --resume was refused; 127 no Python; 128+n ended by
signal n; 141 the reader of standard output has closed it (as `head` does).";

/// The options of a pool's workers, for `supervise map` and for executors.
#[derive(Args, Debug)]
#[command(next_help_heading = "Workers")]
pub struct Workers {
    /// Number of workers [default: the number of cores]
    #[arg(long, short = 'n', value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    workers: Option<u32>,
    /// Replace a worker after N tasks
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    max_tasks: Option<u64>,
    /// Replace a worker after this time
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
    /// Replace a worker that holds more, after its task [default: a fair share of the budget]
    #[arg(long, value_name = "SIZE", value_parser = limit)]
    #[arg(default_value = "auto", hide_default_value = true)]
    ceiling: Limit,
    /// Let the kernel kill a worker that holds more [default: twice the ceiling if that is set,
    /// else nearly the budget]
    #[arg(long, value_name = "SIZE", value_parser = limit)]
    #[arg(default_value = "auto", hide_default_value = true)]
    cap: Limit,
    /// Limit all workers together; tasks are delayed, suspended and requeued before it is reached
    #[arg(long, value_name = "SIZE", value_parser = limit, default_value = "80%")]
    budget: Limit,
    /// Kill a task that runs longer
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    task_timeout: Option<Duration>,
    /// Retry a failed task up to N times
    #[arg(long, value_name = "N", default_value_t = 0)]
    retries: u32,
    /// Retry a task whose worker reached its cap, alone in a fresh worker, up to N times
    #[arg(long, value_name = "N", default_value_t = 1)]
    oom_retries: u32,
    /// Python interpreter [default: that of the environment in which `supervise` is installed, else
    /// `python3`]
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Import this module first, once for all workers
    #[arg(long = "import", value_name = "MODULE")]
    imports: Vec<String>,
    /// How workers start: `template` forks them from a process that has imported all modules,
    /// `fresh` imports them in each worker, and `auto` forks unless an import opens connections or
    /// files, or starts threads or processes, which forked workers cannot share
    #[arg(long, value_enum, default_value_t = Start::Auto)]
    start: Start,
    /// Tasks sent to a worker at once: N, or as many as take 1 ms together
    #[arg(long, value_name = "auto|N", value_parser = batch, default_value = "auto")]
    batch: Batch,
}

/// `supervise map`.
#[derive(Args, Debug)]
pub struct MapArgs {
    /// Function to call for each task
    #[arg(value_name = "MODULE:FUNCTION", value_parser = callable)]
    function: String,
    /// Read tasks from FILE [default: standard input]
    #[arg(long, short, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Write results to FILE, which must not be the input [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write results in the order of the tasks
    #[arg(long)]
    ordered: bool,
    /// Read each line as a string, not as JSON
    #[arg(long)]
    plain: bool,
    /// How to pass a task's `args` to FUNCTION: as one value, as positional arguments, as keywords
    #[arg(long, value_enum, default_value_t = Call::One)]
    call: Call,
    /// Function to call first in each worker
    #[arg(long, value_name = "MODULE:FUNCTION", value_parser = callable)]
    initializer: Option<String>,
    /// Keep a journal in FILE, so that a run that was stopped can be resumed
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Continue with the journal: tasks with a result in it do not run again; the input must be the
    /// same
    #[arg(long, requires = "journal")]
    resume: bool,
    /// Run tasks that failed in the journal again
    #[arg(long, requires = "resume")]
    retry_failed: bool,
    /// Stop at the first failure
    #[arg(long)]
    stop_on_error: bool,
    #[command(flatten)]
    workers: Workers,
}

/// The pool of an executor.
#[derive(Args, Debug)]
pub struct PoolArgs {
    /// The executor's socket, inherited
    #[arg(long)]
    fd: i32,
    #[command(flatten)]
    workers: Workers,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Start {
    Auto,
    Template,
    Fresh,
}

impl Start {
    /// The number of modules that the template imports.
    const fn warm(self) -> u32 {
        match self {
            Self::Auto | Self::Template => Orders::ALL,
            Self::Fresh => 0,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Call {
    One,
    Args,
    Kwargs,
}

#[derive(Clone, Copy, Debug)]
struct Batch(Option<u32>);

fn limit(text: &str) -> Result<Limit, String> {
    match text {
        "auto" => Ok(Limit::Auto),
        "none" => Ok(Limit::Off),
        text => Size::limit(text).map(Limit::At),
    }
}

fn batch(text: &str) -> Result<Batch, String> {
    if text == "auto" {
        return Ok(Batch(None));
    }
    match text.parse() {
        Ok(number @ 1..=65536) => Ok(Batch(Some(number))),
        Ok(_) | Err(_) => Err("expected `auto` or a number from 1 to 65536".to_owned()),
    }
}

fn callable(text: &str) -> Result<String, String> {
    let (module, name) = text.split_once(':').unwrap_or((text, ""));
    let is_path = |path: &str| {
        path.split('.').all(|part| {
            !part.is_empty() && part.chars().all(|it| it == '_' || it.is_alphanumeric())
        })
    };
    if is_path(module) && is_path(name) {
        Ok(text.to_owned())
    } else {
        Err("expected MODULE:FUNCTION, like `etl:convert`".to_owned())
    }
}

/// Runs a function over lines. Returns the exit status.
pub fn map(args: &MapArgs) -> i32 {
    let orders = Orders {
        function: Some(args.function.clone()),
        call: match args.call {
            Call::One => "one",
            Call::Args => "args",
            Call::Kwargs => "kwargs",
        }
        .to_owned(),
        imports: args.workers.imports.clone(),
        initializer: args.initializer.clone(),
        warm: args.workers.start.warm(),
    };
    if args.plain && !matches!(args.call, Call::One) {
        return fail(
            "--plain cannot be used with --call: a line is one value",
            WRONG_USE,
        );
    }
    in_runtime(async {
        let (ends, failed_before) = match open_ends(args) {
            Ok(opened) => opened,
            Err(message) => return fail(&message, NOT_SET_UP),
        };
        let status = run(&args.workers, args.stop_on_error, orders, None, ends).await;
        if status == 0 && failed_before > 0 {
            complain(&format!(
                "tasks that failed in an earlier run: {failed_before}. hint: --retry-failed runs \
                 them again"
            ));
            return FAILED;
        }
        status
    })
}

type Ends = (Box<dyn Source>, Box<dyn Sink>, Box<dyn Observer>);

/// Opens the input, the output and the journal. Nothing is written before the first worker is
/// ready. Also returns the number of tasks that failed in earlier runs and do not run again.
fn open_ends(args: &MapArgs) -> Result<(Ends, u64), String> {
    let input = map_files::open_input(args.input.as_deref())?;
    let output = Output::open(args.output.as_deref())?;
    output.check_differs(&input, "the input")?;
    let task = task_of(args);
    let journal = match &args.journal {
        Some(path) if args.resume => Some(Journal::resume(path, &task, args.retry_failed)),
        Some(path) => Some(Journal::create(path, &task)),
        None => None,
    };
    let journal = journal.transpose().map_err(|error| error.to_string())?;
    if let Some(journal) = &journal {
        output.check_differs(journal.file(), "the journal")?;
    }
    let order = if args.ordered {
        Order::AsGiven
    } else {
        Order::AsTheyEnd
    };
    let format = if args.plain {
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
    let results = results.watching(gone).streaming(is_stream);
    let ends: Ends = (Box::new(lines), Box::new(results), Box::new(progress));
    Ok((ends, failed))
}

/// What a run does with each line. A journal is valid for one task description only.
fn task_of(args: &MapArgs) -> String {
    let call = match args.call {
        Call::One => "",
        Call::Args => " --call args",
        Call::Kwargs => " --call kwargs",
    };
    let plain = if args.plain { " --plain" } else { "" };
    format!("{}{call}{plain}", args.function)
}

/// Serves an executor. Returns the exit status.
pub fn pool(args: &PoolArgs) -> i32 {
    let orders = Orders {
        function: None,
        call: "one".to_owned(),
        imports: args.workers.imports.clone(),
        initializer: None,
        warm: args.workers.start.warm(),
    };
    let client = match users::inherited(args.fd) {
        Ok(fd) => UnixStream::from(fd),
        Err(error) => return fail(&format!("--fd {}: {error}", args.fd), WRONG_USE),
    };
    in_runtime(async {
        let mut client = client;
        let setup = match executor::read_setup(&mut client) {
            Ok(setup) => setup,
            Err(error) => return fail(&format!("read the executor's setup: {error}"), OUR_BUG),
        };
        let (source, sink) = match executor::open(client) {
            Ok(ends) => ends,
            Err(error) => return fail(&error.to_string(), NOT_SET_UP),
        };
        let quiet = match ProgressDisplay::quiet() {
            Ok(quiet) => quiet,
            Err(error) => return fail(&error.to_string(), NOT_SET_UP),
        };
        let ends: Ends = (Box::new(source), Box::new(sink), Box::new(quiet));
        run(&args.workers, false, orders, Some(setup), ends).await
    })
}

async fn run(
    workers: &Workers,
    stop_on_error: bool,
    orders: Orders,
    setup: Option<Vec<u8>>,
    (source, sink, observer): Ends,
) -> i32 {
    let python = match interpreter::find(workers.python.as_deref()) {
        Ok(python) => python,
        Err(message) => return fail(&message, NOT_FOUND),
    };
    let memory = MemorySpec {
        ceiling: workers.ceiling,
        cap: workers.cap,
        budget: workers.budget,
        ..MemorySpec::plain()
    };
    // If the available memory cannot be read here, setting up the pool fails and says why.
    let available = doctor::available().unwrap_or(Bytes(u64::MAX));
    if let Some((name, why)) = config::too_small(&memory, available).first() {
        return fail(&format!("{}: {why}", name.flag()), WRONG_USE);
    }
    let pool = PoolSpec {
        workers: count(workers),
        max_tasks: workers.max_tasks,
        max_age: workers.max_age,
        memory,
        task_timeout: workers.task_timeout,
        retries: workers.retries,
        oom_retries: workers.oom_retries,
        batch: workers.batch.0,
        stop_on_error,
    };
    if let Err(message) = check_open_files(pool.workers, open_files::most()) {
        return fail(&message, NOT_SET_UP);
    }
    let chosen = config::runtime_dir(env::vars_os(), users::own_id(), super::run::unusable);
    let directory = match chosen {
        Ok((directory, warnings)) => {
            warnings.iter().for_each(|warning| complain(warning));
            directory
        }
        Err(message) => return fail(&message, NOT_SET_UP),
    };
    let name = format!("map-{}", std::process::id());
    let spec = Spec::for_pool(name, memory, command(python), directory.clone());
    let parts = Parts {
        pool,
        spec,
        orders,
        forks_always: matches!(workers.start, Start::Template),
        setup,
        source,
        sink,
        directory,
        observer,
    };
    let driver = match PoolDriver::new(parts) {
        Ok(driver) => driver,
        Err(error) => return fail(&format!("failed to initialise: {error}"), NOT_SET_UP),
    };
    match driver.run().await {
        Ok(tally) => status(tally),
        // The executor is gone.
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => 0,
        // The reader of the output is gone: the status is that of a program killed by SIGPIPE.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 128 + Signal::PIPE.0,
        Err(error) => fail(&error.to_string(), NOT_SET_UP),
    }
}

fn count(workers: &Workers) -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = u32::try_from(cores).unwrap_or(1);
    workers.workers.unwrap_or(cores)
}

/// Checks that there are descriptors for all workers. Without them, starts would fail forever.
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

const fn status(tally: Tally) -> i32 {
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

fn command(program: PathBuf) -> CommandSpec {
    CommandSpec {
        argv: vec![program.clone().into()],
        program,
        env: std::collections::BTreeMap::new(),
        directory: None,
        user: None,
        listen: Vec::new(),
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
        assert_eq!(check_open_files(4096, open_files::MOST), Ok(()));
    }
}
