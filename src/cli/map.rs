//! `supervise map`, and the pool that a `supervise.Executor` starts.

use std::{env, io, os::unix::net::UnixStream, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::{
    interpreter,
    map_files::{self, Output},
    progress::{Input, Progress},
    run::{OUR_BUG, complain, fail, in_runtime},
};
use crate::{
    agent::pool::Orders,
    config,
    driver::pool::{Onlooker, Parts, PoolDriver, Tally},
    host::{doctor, open_files, users},
    queue::{Format, Journal, Lines, Order, Results, Sink, Source, executor},
    supervisor::{
        pool::{event::Over, spec::PoolSpec},
        spec::{CommandSpec, Limit, MemorySpec, Spec},
    },
    units::{Bytes, Signal, Size},
};

/// Descriptors of a slot: the sockets and processes of its worker, of the next worker and of the
/// process that forks them, the outputs of both workers, and the events of its group.
const FILES_OF_A_WORKER: u64 = 12;
/// Our own descriptors, and some in reserve.
const FILES_OF_OURS: u64 = 64;

const FAILED: i32 = 1;
const WRONG_USE: i32 = 2;
const GAVE_UP: i32 = 75;
const NOT_SET_UP: i32 = 125;
const NOT_FOUND: i32 = 127;

pub(super) const NOTES: &str = "\
A task is a JSON line with `id` and `args`, and a `key` if tasks differ in the memory
that they need;
or any JSON value, and then the number of its line, from 1, is its id; with --plain each line is a
string. There is exactly one line of
result for each task, with `id`, `ok`, `worker`, `seconds` and `peak` (bytes), and `result` or an
`error` of `type`, `message`, `traceback`, `cause` and `attempts`. What a task prints goes to
standard error as it is printed, each line with the task's id. The current directory is on sys.path.

Ctrl-C finishes the tasks that have begun and begins no other; again, it stops them. --resume does
again what was stopped. The output is left as it was until the first worker is ready.

Exit status: 0 all tasks returned; 1 the output has failures, of this run or of an earlier one; 2
wrong use; 75 no worker could be started; 125 could not set up, or --resume was refused; 127 no
Python; 128+n ended by signal n; 141 whoever read standard output has closed it (as `head` does).";

/// What a pool's workers may have and do, for lines and for executors.
#[derive(Args, Debug)]
#[command(next_help_heading = "Workers")]
pub struct Workers {
    /// So many workers [default: the number of cores]
    #[arg(long, short = 'n', value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    workers: Option<u32>,
    /// A worker goes after N tasks
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    max_tasks: Option<u64>,
    /// A worker goes after that time
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
    /// A worker that holds more goes after its task [default: a fair share of the budget]
    #[arg(long, value_name = "SIZE", value_parser = limit)]
    #[arg(default_value = "auto", hide_default_value = true)]
    ceiling: Limit,
    /// The kernel ends a worker that holds more [default: twice a ceiling that is given, else
    /// nearly the budget]
    #[arg(long, value_name = "SIZE", value_parser = limit)]
    #[arg(default_value = "auto", hide_default_value = true)]
    cap: Limit,
    /// All workers together; tasks are held back, suspended and put back before it is reached
    #[arg(long, value_name = "SIZE", value_parser = limit, default_value = "80%")]
    budget: Limit,
    /// A task that runs longer is killed
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    task_timeout: Option<Duration>,
    /// A task that failed is run up to N times more
    #[arg(long, value_name = "N", default_value_t = 0)]
    retries: u32,
    /// A task whose worker met its cap is run, alone in a fresh worker, up to N times more
    #[arg(long, value_name = "N", default_value_t = 1)]
    oom_retries: u32,
    /// The Python interpreter [default: that of the environment in which `supervise` is installed,
    /// else `python3`]
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Import this first, once for all workers
    #[arg(long = "import", value_name = "MODULE")]
    imports: Vec<String>,
    /// How workers start: forked from a template that has imported all, or each by itself; `auto`
    /// forks what forks can share, and not connections, files, threads or processes that an import
    /// opens or starts
    #[arg(long, value_enum, default_value_t = Start::Auto)]
    start: Start,
    /// So many tasks are under way at a worker at a time: as many as fit into 1 ms, or N
    #[arg(long, value_name = "auto|N", value_parser = batch, default_value = "auto")]
    batch: Batch,
}

/// `supervise map`.
#[derive(Args, Debug)]
pub struct MapArgs {
    /// What is called for each task
    #[arg(value_name = "MODULE:FUNCTION", value_parser = callable)]
    function: String,
    /// Read tasks from here [default: standard input]
    #[arg(long, short, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Write results there, which must not be the input [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write results in the order of the tasks
    #[arg(long)]
    ordered: bool,
    /// A line is a string, not JSON
    #[arg(long)]
    plain: bool,
    /// How FUNCTION gets a task's args: as one value, as its positional arguments, as keywords
    #[arg(long, value_enum, default_value_t = Call::One)]
    call: Call,
    /// Call this first in each worker
    #[arg(long, value_name = "MODULE:FUNCTION", value_parser = callable)]
    initializer: Option<String>,
    /// Keep results here, so that a run that was killed can go on
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Go on with the journal: what is done in it is not done again; another input is refused
    #[arg(long, requires = "journal")]
    resume: bool,
    /// What failed in the journal is done again
    #[arg(long, requires = "resume")]
    retry_failed: bool,
    /// The first failure ends the run
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
    /// How many modules the template imports.
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
        Ok(_) | Err(_) => Err("it is neither `auto` nor a number from 1 to 65536".to_owned()),
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
        Err("it is not MODULE:FUNCTION, like `etl:convert`".to_owned())
    }
}

/// Runs a function over lines; the result is the exit status.
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
        return fail("--plain: a line is one value: leave out --call", WRONG_USE);
    }
    in_runtime(async {
        let (ends, failed) = match ends(args) {
            Ok(found) => found,
            Err(message) => return fail(&message, NOT_SET_UP),
        };
        let status = run(&args.workers, args.stop_on_error, orders, None, ends).await;
        if status == 0 && failed > 0 {
            complain(&format!(
                "{failed} of the tasks failed in an earlier run. hint: --retry-failed does them again"
            ));
            return FAILED;
        }
        status
    })
}

type Ends = (Box<dyn Source>, Box<dyn Sink>, Box<dyn Onlooker>);

/// Opens what is read and what is written. Nothing of it is written before the first worker is
/// ready. With it: how many tasks have failed in earlier runs, and are not done again.
fn ends(args: &MapArgs) -> Result<(Ends, u64), String> {
    let input = map_files::open_input(args.input.as_deref())?;
    let output = Output::open(args.output.as_deref())?;
    output.is_not(&input, "the input")?;
    let task = task_of(args);
    let journal = match &args.journal {
        Some(path) if args.resume => Some(Journal::resume(path, &task, args.retry_failed)),
        Some(path) => Some(Journal::create(path, &task)),
        None => None,
    };
    let journal = journal.transpose().map_err(|error| error.to_string())?;
    if let Some(journal) = &journal {
        output.is_not(journal.file(), "the journal")?;
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
    let progress = Progress::new(input.way()).map_err(|error| error.to_string())?;
    let lines = Lines::start(input, format, journal.as_ref()).map_err(|error| error.to_string())?;
    let (gone, is_stream) = (output.reader_gone(), output.is_stream());
    let results = Results::start(output, order, journal).map_err(|error| error.to_string())?;
    let results = results.watching(gone).streaming(is_stream);
    let ends: Ends = (Box::new(lines), Box::new(results), Box::new(progress));
    Ok((ends, failed))
}

/// What is done with each line: a journal is of one function that is called in one way.
fn task_of(args: &MapArgs) -> String {
    let call = match args.call {
        Call::One => "",
        Call::Args => " --call args",
        Call::Kwargs => " --call kwargs",
    };
    let plain = if args.plain { " --plain" } else { "" };
    format!("{}{call}{plain}", args.function)
}

/// Serves an executor; the result is the exit status.
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
        let quiet = match Progress::quiet() {
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
    (source, sink, onlooker): Ends,
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
    if let Err(message) = has_files_for(pool.workers, open_files::most()) {
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
        onlooker,
    };
    let driver = match PoolDriver::new(parts) {
        Ok(driver) => driver,
        Err(error) => return fail(&format!("take hold of this machine: {error}"), NOT_SET_UP),
    };
    match driver.run().await {
        Ok(tally) => status(tally),
        // The executor is gone.
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => 0,
        // Who read the results has enough: as of a program that SIGPIPE has ended.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 128 + Signal::PIPE.0,
        Err(error) => fail(&error.to_string(), NOT_SET_UP),
    }
}

fn count(workers: &Workers) -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = u32::try_from(cores).unwrap_or(1);
    workers.workers.unwrap_or(cores)
}

/// A worker for which no descriptor is left would be started again and again.
fn has_files_for(workers: u32, most: u64) -> Result<(), String> {
    let room = most.saturating_sub(FILES_OF_OURS) / FILES_OF_A_WORKER;
    if u64::from(workers) <= room {
        return Ok(());
    }
    Err(format!(
        "--workers {workers}: no more than {most} files may be open, which is enough for {room} \
         workers. hint: raise the hard limit (`ulimit -Hn`)"
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
    fn workers_for_which_there_are_no_descriptors_are_refused_before_anything_starts() {
        assert_eq!(has_files_for(80, 1024), Ok(()));
        let error = has_files_for(81, 1024).unwrap_err();
        let expected = "--workers 81: no more than 1024 files may be open, which is enough for 80";
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(has_files_for(4096, open_files::MOST), Ok(()));
    }
}
