//! What workers forked from one template share, and what each of them has for itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    pool::{map, map_by, run_numbers},
    turn,
    venv::NEWEST,
};

const TASKS: u64 = 4;

/// A folder with modules. Each import of one adds a byte to its `.imports` file.
fn modules(modules: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, code) in modules {
        let code = format!(
            "import os\nwith open(__name__ + '.imports', 'a') as file:\n    file.write('x')\n\
             {code}\n\ndef pid(_):\n    return os.getpid()\n"
        );
        fs::write(folder.path().join(name).with_extension("py"), code).unwrap();
    }
    folder
}

/// How many processes have imported a module: one, if workers are forked after the import.
fn imports(folder: &Path, name: &str) -> u64 {
    let path = folder.join(name).with_extension("imports");
    fs::metadata(path).map_or(0, |found| found.len())
}

/// Runs each task in a process of its own. Returns the results and standard error.
fn run(mut command: Command, count: u64) -> (Vec<Value>, String) {
    command.args(["--max-tasks", "1", "--task-timeout", "20s"]);
    let (output, results) = run_numbers(command, count);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}{results:?}");
    let results: Vec<_> = results.values().map(|it| it["result"].clone()).collect();
    assert_eq!(results.len() as u64, count, "{stderr}");
    (results, stderr)
}

fn with_numpy(folder: &Path, words: &[&str]) -> Command {
    let mut command = map_by(&NEWEST.bin("python"), folder, words);
    command.env("OPENBLAS_NUM_THREADS", "2");
    command
}

fn distinct(values: &[Value]) -> usize {
    let values: BTreeSet<_> = values.iter().map(ToString::to_string).collect();
    values.len()
}

/// A server that answers each line with the number of its connection. Returns its port.
fn numbered() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for (number, peer) in listener.incoming().enumerate() {
            thread::spawn(move || answer(number, peer.unwrap()));
        }
    });
    port
}

fn answer(number: usize, mut peer: TcpStream) {
    let lines = BufReader::new(peer.try_clone().unwrap()).lines();
    for _ in lines.map_while(Result::ok) {
        // The client may have ended.
        let _ = writeln!(peer, "{number}");
    }
}

const DATABASE: &str = "
import socket
connection = socket.create_connection(('127.0.0.1', int(os.environ['DB_PORT'])))
lines = connection.makefile('rw', newline='\\n')
def which(_):
    lines.write('which?\\n')
    lines.flush()
    return int(lines.readline())
";

#[test]
fn a_connection_that_an_import_opens_is_not_shared_by_workers() {
    let _turn = turn::beside();
    let folder = modules(&[("db", DATABASE), ("app", "from db import which")]);
    let port = numbered().to_string();
    let mut command = map(folder.path(), &["app:which"]);
    command.env("DB_PORT", &port);
    let (results, stderr) = run(command, TASKS);
    assert_eq!(distinct(&results), 4, "{stderr}");
    let expected =
        format!("`db` opens a connection to 127.0.0.1:{port}, which forked workers cannot share");
    assert!(stderr.contains(&expected), "{stderr}");
    assert!(!stderr.contains("`app`"), "{stderr}");
    // With --start template they share it, with a warning. One task, as answers could get mixed up.
    let mut command = map(folder.path(), &["--start", "template", "app:which"]);
    command.env("DB_PORT", &port);
    let before = imports(folder.path(), "db");
    let (_, stderr) = run(command, 1);
    assert!(stderr.contains("`db` opens a connection to"), "{stderr}");
    assert_eq!(imports(folder.path(), "db"), before + 1);
}

#[test]
fn an_import_that_forked_workers_cannot_share_is_named_and_repeated_by_each_worker() {
    let _turn = turn::beside();
    for (code, expected) in [
        ("held = open(__file__)", "opens the file /"),
        (
            "import sqlite3\nheld = sqlite3.connect('some.db')\n\
             held.execute('create table if not exists t (a)')",
            "some.db",
        ),
        ("held = os.pipe()", "opens a pipe"),
        (
            "import asyncio\nheld = asyncio.new_event_loop()",
            "opens an eventpoll descriptor",
        ),
        (
            "import subprocess\nheld = subprocess.Popen(['sleep', '1000'])",
            "starts a child process",
        ),
        (
            "import socket\nheld = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
            "opens a socket",
        ),
    ] {
        let folder = modules(&[("inner", code), ("outer", "import inner")]);
        let (_, stderr) = run(map(folder.path(), &["outer:pid"]), TASKS);
        assert!(stderr.contains(expected), "{code}: {stderr}");
        // A child process is noticed only after the whole import, so `outer` may be named.
        assert!(
            stderr.contains("`inner` ") || expected.contains("child"),
            "{code}: {stderr}"
        );
        assert!(imports(folder.path(), "inner") > TASKS, "{code}: {stderr}");
    }
}

#[test]
fn imports_that_forked_workers_can_share_happen_once() {
    let _turn = turn::beside();
    for code in [
        "import logging\nlogging.basicConfig(filename='some.log')",
        "import fcntl\nheld = open('lock', 'w')\nfcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "import mmap\nheld = open(__file__)\n\
         mapped = mmap.mmap(held.fileno(), 0, prot=mmap.PROT_READ)",
        "import socket\nheld = socket.create_server(('127.0.0.1', 0))",
        "import socket\nsocket.socket().close()",
        "import sqlite3\nheld = sqlite3.connect(':memory:')",
        "import tempfile\nheld = tempfile.TemporaryDirectory()",
        "held = open('/dev/null')",
        "import threading\nheld = threading.Thread(target=print)\nheld.start()\nheld.join()",
    ] {
        let folder = modules(&[("shared", code)]);
        let (results, stderr) = run(map(folder.path(), &["shared:pid"]), TASKS);
        assert_eq!(distinct(&results), 4, "{code}: {stderr}");
        assert!(!stderr.contains("cannot share"), "{code}: {stderr}");
        assert_eq!(imports(folder.path(), "shared"), 1, "{code}: {stderr}");
    }
}

#[test]
fn modules_before_the_first_that_cannot_be_shared_are_imported_once() {
    let _turn = turn::beside();
    let folder = modules(&[("first", ""), ("second", "held = os.pipe()"), ("third", "")]);
    let words = ["--import", "first", "--import", "second", "third:pid"];
    let (_, stderr) = run(map(folder.path(), &words), TASKS);
    let expected = "`second` opens a pipe, which forked workers cannot share; each worker imports \
                    all modules itself, except `first`";
    assert!(stderr.contains(expected), "{stderr}");
    // Once by the first template, and once by the template that replaces it.
    assert_eq!(imports(folder.path(), "first"), 2);
    assert!(imports(folder.path(), "second") > TASKS);
    assert!(imports(folder.path(), "third") > TASKS);
}

#[test]
fn threads_of_openblas_do_not_prevent_forked_workers() {
    let code = "import numpy\n\
                def product(_):\n    ones = numpy.ones((300, 300))\n    \
                return float((ones @ ones).min())";
    let folder = modules(&[("blas", code)]);
    let (results, stderr) = run(with_numpy(folder.path(), &["blas:product"]), TASKS);
    assert!(results.iter().all(|it| *it == 300.0), "{results:?}");
    assert!(!stderr.contains("cannot share"), "{stderr}");
    assert_eq!(imports(folder.path(), "blas"), 1, "{stderr}");
}

#[test]
fn threads_of_gnu_openmp_are_named_and_each_worker_imports_by_itself() {
    let _turn = turn::beside();
    let code = "import ctypes\n\
                gomp = ctypes.CDLL('libgomp.so.1')\n\
                nothing = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p)\n\
                def region(_):\n    gomp.GOMP_parallel(nothing, None, 2, 0)\n    return 1\n\
                region(0)";
    let folder = modules(&[("openmp", code)]);
    let (_, stderr) = run(map(folder.path(), &["openmp:region"]), TASKS);
    let expected = "`openmp` starts a thread of libgomp.so.1";
    assert!(stderr.contains(expected), "{stderr}");
    assert!(
        !stderr.contains("did not work"),
        "no trial is needed: {stderr}"
    );
    assert!(imports(folder.path(), "openmp") > TASKS, "{stderr}");
}

/// A library that is named like OpenBLAS. Its product needs the thread that it starts when loaded.
const LIBRARY: &str = r"
#include <pthread.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int asked, done;
static void *work(void *unused) {
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!asked) pthread_cond_wait(&changed, &lock);
        asked = 0; done = 1;
        pthread_cond_broadcast(&changed);
    }
    return unused;
}
static void start(void) { pthread_t thread; pthread_create(&thread, 0, work, 0); }
#ifdef HANDLES_FORK
static void anew(void) {
    pthread_mutex_init(&lock, 0); pthread_cond_init(&changed, 0);
    start();
}
#endif
__attribute__((constructor)) static void load(void) {
    start();
#ifdef HANDLES_FORK
    pthread_atfork(0, 0, anew);
#endif
}
void cblas_dgemm(int order, int ta, int tb, long m, long n, long k, double alpha, const double *a,
                 long lda, const double *b, long ldb, double beta, double *c, long ldc) {
    pthread_mutex_lock(&lock);
    asked = 1; done = 0;
    pthread_cond_broadcast(&changed);
    while (!done) pthread_cond_wait(&changed, &lock);
    for (long i = 0; i < m * n; i++) c[i] = k;
    pthread_mutex_unlock(&lock);
}
";

/// The part of pyarrow that the trial calls.
const ARROW: &str = "
class csv:
    def read_csv(lines):
        csv.num_rows = len(lines.splitlines()) - 1
        return csv

def py_buffer(content):
    return content
";

#[test]
fn a_library_that_hangs_in_a_fork_is_named_and_each_worker_imports_by_itself() {
    let _turn = turn::beside();
    for (name, option, forked) in [
        ("libopenblas_hangs.so", "-DHANGS", false),
        ("libopenblas_forks.so", "-DHANDLES_FORK", true),
        // Arrow has a thread as well. Its trial reads a table.
        ("libarrow.so.1", "-DHANDLES_FORK", true),
    ] {
        let code = format!("import ctypes\nheld = ctypes.CDLL(os.path.abspath('{name}'))");
        let folder = modules(&[("blas", &code), ("pyarrow", ARROW)]);
        fs::write(folder.path().join("blas.c"), LIBRARY).unwrap();
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-pthread", option, "-o", name, "blas.c"])
            .current_dir(folder.path())
            .status();
        assert!(built.unwrap().success());
        let (_, stderr) = run(map(folder.path(), &["blas:pid"]), TASKS);
        let expected = format!("`blas` starts a thread of {name}, which did not work in a fork");
        assert_eq!(stderr.contains(&expected), !forked, "{stderr}");
        let imports = imports(folder.path(), "blas");
        assert_eq!(imports == 1, forked, "{name}: {imports} {stderr}");
        assert_eq!(imports > TASKS, !forked, "{name}: {imports} {stderr}");
    }
}

const GENERATORS: &str = "
import random
import numpy, numpy.random
import torch

own, seeded = random.Random(), random.Random(1)
numpy_random = numpy.random
new, new_seeded = numpy_random.default_rng(), numpy_random.default_rng(1)
philox = numpy_random.Generator(numpy_random.Philox())
legacy, legacy_seeded = numpy_random.RandomState(), numpy_random.RandomState(1)
sequence = numpy_random.SeedSequence()
numpy_random.seed(1)
numpy_random.normal()  # It draws two numbers, and keeps one for the next call.
random.seed(1)

def differ(_):
    return {
        'random': random.random(),
        'random.Random': own.random(),
        'numpy, uniform': numpy_random.random(),
        'numpy, normal': numpy_random.normal(),
        'numpy RandomState': legacy.random_sample(),
        'numpy Generator': new.random(),
        'numpy Philox': philox.random(),
        'numpy SeedSequence': str(sequence.spawn(1)[0].generate_state(4)),
        'numpy spawn': new.spawn(1)[0].random(),
        'torch': torch.default_generator.random(),
    }

def same(_):
    return [seeded.random(), new_seeded.random(), legacy_seeded.random_sample()]
";

/// A module that is loaded at its first use (`importlib.util.LazyLoader`).
const LAZY: &str = "
import importlib.util, sys
spec = importlib.util.find_spec('torch')
spec.loader = importlib.util.LazyLoader(spec.loader)
torch = sys.modules['torch'] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(torch)
";

/// Like torch: a global generator with a method `seed`.
const TORCH: &str = "
import random
default_generator = random.Random(1)
";

#[test]
fn random_numbers_differ_between_workers_unless_the_user_has_seeded_them() {
    let _turn = turn::beside();
    let folder = modules(&[("draws", GENERATORS), ("torch", TORCH), ("lazy", LAZY)]);
    let (results, stderr) = run(with_numpy(folder.path(), &["draws:differ"]), 6);
    assert_eq!(imports(folder.path(), "draws"), 1, "{stderr}");
    let mut drawn: BTreeMap<&String, Vec<Value>> = BTreeMap::new();
    for (name, value) in results.iter().flat_map(|it| it.as_object().unwrap()) {
        drawn.entry(name).or_default().push(value.clone());
    }
    assert_eq!(drawn.len(), 10);
    for (name, values) in drawn {
        assert_eq!(distinct(&values), 6, "{name}: {values:?}");
    }
    let (results, stderr) = run(with_numpy(folder.path(), &["draws:same"]), 6);
    assert_eq!(distinct(&results), 1, "{stderr}{results:?}");
    assert_eq!(imports(folder.path(), "torch"), 2);
    let (_, stderr) = run(map(folder.path(), &["lazy:pid"]), TASKS);
    assert_eq!(imports(folder.path(), "lazy"), 1, "{stderr}");
    assert_eq!(
        imports(folder.path(), "torch"),
        2,
        "the search for generators does not load it"
    );
}

const HANDLERS: &str = "
import atexit, concurrent.futures, logging, logging.handlers, multiprocessing.util, signal, tempfile

def note(text):
    with open('notes', 'a') as file:
        file.write(text + '\\n')

atexit.register(note, 'template')
multiprocessing.util.Finalize(None, note, ('template finalizer',), exitpriority=1)
directory = tempfile.TemporaryDirectory()

def leaves(number):
    global own
    assert os.path.isdir(directory.name), 'another worker has removed it'
    own = tempfile.TemporaryDirectory()
    atexit.register(note, 'own')
    multiprocessing.util.Finalize(None, note, ('own finalizer',), exitpriority=1)
    child = multiprocessing.get_context('fork').Process(target=signal.pause, daemon=True)
    child.start()
    handler = logging.handlers.MemoryHandler(100, target=logging.FileHandler('log'))
    logging.getLogger().addHandler(handler)
    logging.getLogger().warning('logged by %d', number)
    return [own.name, child.pid, directory.name]
";

#[test]
fn exit_handlers_of_imports_run_once_and_those_of_tasks_in_each_worker() {
    let folder = modules(&[("handlers", HANDLERS)]);
    let (results, stderr) = run(map(folder.path(), &["handlers:leaves"]), TASKS);
    assert_eq!(imports(folder.path(), "handlers"), 1, "{stderr}");
    let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let mut notes: Vec<_> = text("notes").lines().map(str::to_owned).collect();
    notes.sort();
    let mut expected = ["own", "own finalizer"].map(|it| vec![it; 4]).concat();
    // These run once, in the template.
    expected.extend(["template", "template finalizer"]);
    assert_eq!(notes, expected);
    let log = text("log");
    for (number, result) in (1..).zip(&results) {
        assert!(log.contains(&format!("logged by {number}\n")), "{log}");
        let own = result[0].as_str().unwrap();
        assert!(!Path::new(own).exists(), "{own}");
        let shared = result[2].as_str().unwrap();
        assert!(!Path::new(shared).exists(), "{shared}");
        let child = format!("/proc/{}", result[1]);
        assert!(!Path::new(&child).exists(), "{child}");
    }
}
