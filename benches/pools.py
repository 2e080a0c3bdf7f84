#!/usr/bin/env python3
"""Compares pools of two workers: those of supervise and those that Python programs use today.

    python3 benches/pools.py [--rounds N] [--only NAME,NAME] [--pools NAME,NAME] [--tasks N] [--binary PATH]
                             [--venv PATH]

Needs Python 3.11 or newer and a built `supervise` (target/release/supervise or `--binary`). Makes an environment with
the other pools from PyPI once. Prints a Markdown table for each measurement: the median (min-max) of the rounds, and
the median of the ratios to `mp.Pool` in the same round. In each round every pool runs once, in its own process with a
time limit, in rotating order.

noop       tasks that return their argument, each submitted alone (no chunks) to a warm pool
roundtrip  one such task at a time: the median and the 99th percentile
payload    100 KB of bytes in each direction
fresh      a process for each task. All pools use their defaults, and import numpy before the fork if they can;
           `--only fresh --pools "mp.Pool,supervise map"` takes a minute
memory     the memory of `supervise map` itself during `--tasks` no-op tasks; one run

`supervise map` reads and writes JSON and packs tasks in batches. Its start and end are part of its time, unlike those
of the others, so it gets more tasks. Its round trip is a line in and a line out.
"""
import argparse
import importlib.metadata
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ["numpy", "cloudpickle", "loky", "pebble", "mpire", "billiard"]
WORKERS = 2
#: The time limit in seconds for one pool in one round.
LIMIT = 90
PAYLOAD = 100_000

TASKS_MODULE = """\
import os, time

def same(x):
    return x

def nap(_):
    time.sleep(0.02)
    return os.getpid()
"""
NUMPY_MODULE = """\
import os, numpy

def total(_):
    return [os.getpid(), int(numpy.arange(10).sum())]
"""

#: The number of tasks for each pool, so that a round takes a second or two.
TASKS = {
    "noop": {
        "mp.Pool": 20_000,
        "ProcessPoolExecutor": 10_000,
        "loky": 10_000,
        "pebble": 5_000,
        "mpire": 10_000,
        "billiard": 20_000,
        "Executor.submit": 20_000,
        "Executor.map": 20_000,
        "supervise map": 200_000,
    },
    "roundtrip": dict.fromkeys(
        ["mp.Pool", "ProcessPoolExecutor", "loky", "pebble", "mpire", "billiard", "Executor.submit",
         "supervise map"], 3_000),
    "payload": dict.fromkeys(
        ["mp.Pool", "ProcessPoolExecutor", "loky", "pebble", "mpire", "billiard", "Executor.submit"], 2_000),
    "fresh": {
        "mp.Pool": 200,
        "mp.Pool forkserver": 12,
        "pebble": 100,
        "mpire": 100,
        "billiard": 10,
        "Executor.submit": 500,
        "supervise map": 1_000,
    },
}  # fmt: skip
#: The columns of each measurement: the key of the value, and the title.
COLUMNS = {"roundtrip": {"p50": "p50, µs", "p99": "p99, µs"}}
RATES = {"rate": "tasks/s"}
LABELS = {
    "mp.Pool": "mp.Pool (fork)",
    "mp.Pool forkserver": "mp.Pool (forkserver, not preloaded)",
    "ProcessPoolExecutor": "ProcessPoolExecutor (fork)",
    "Executor.submit": "supervise.Executor, submit",
    "Executor.map": "supervise.Executor, map",
}


# The pools. Each is a context of two functions: one for the results of many tasks, and one for a single task.


@contextmanager
def mp_pool(fresh, method="fork"):
    import multiprocessing

    with multiprocessing.get_context(method).Pool(WORKERS, maxtasksperchild=1 if fresh else None) as pool:
        yield (
            lambda function, items: pool.imap_unordered(function, items, chunksize=1),
            lambda function, item: pool.apply(function, (item,)),
        )


def forkserver_pool(fresh):
    return mp_pool(fresh, "forkserver")


@contextmanager
def billiard(fresh):
    import billiard

    with billiard.get_context("fork").Pool(WORKERS, maxtasksperchild=1 if fresh else None) as pool:

        def each(function, items):
            tasks = [pool.apply_async(function, (item,)) for item in items]
            return (task.get() for task in tasks)

        if fresh:
            time.sleep(2)  # In the beginning it replaces workers more often than later.
        # When a worker ends, its `imap_unordered` raises in a thread and never returns.
        yield (
            each if fresh else lambda function, items: pool.imap_unordered(function, items, chunksize=1),
            lambda function, item: pool.apply(function, (item,)),
        )


def drained(futures):
    """The results in order. Keeps no future after its result."""
    futures.reverse()
    while futures:
        yield futures.pop().result()


def by_submit(submit):
    return (
        lambda function, items: drained([submit(function, item) for item in items]),
        lambda function, item: submit(function, item).result(),
    )


@contextmanager
def process_pool_executor(fresh):
    import concurrent.futures
    import multiprocessing

    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        yield by_submit(pool.submit)


@contextmanager
def loky(fresh):
    import loky

    pool = loky.ProcessPoolExecutor(max_workers=WORKERS)
    yield by_submit(pool.submit)
    pool.shutdown(kill_workers=True)


@contextmanager
def pebble(fresh):
    import pebble

    pool = pebble.ProcessPool(max_workers=WORKERS, max_tasks=1 if fresh else 0)
    yield by_submit(lambda function, item: pool.schedule(function, args=[item]))
    pool.close()
    pool.join()


@contextmanager
def mpire(fresh):
    import mpire

    lifespan = 1 if fresh else None
    with mpire.WorkerPool(n_jobs=WORKERS, keep_alive=True) as pool:
        yield (
            lambda function, items: pool.imap_unordered(
                function, items, chunk_size=1, iterable_len=len(items), worker_lifespan=lifespan
            ),
            lambda function, item: pool.apply(function, args=(item,)),
        )


@contextmanager
def executor(fresh, by_map=False):
    import supervise

    options = {"max_tasks_per_child": 1, "preload": ["numpy", "bench_numpy"]} if fresh else {}
    with supervise.Executor(WORKERS, **options) as pool:
        many, one = by_submit(pool.submit)
        if by_map:
            many = lambda function, items: pool.map(function, items, chunksize=1)  # noqa: E731
        yield many, one


def executor_map(fresh):
    return executor(fresh, by_map=True)


OPENERS = {
    "mp.Pool": mp_pool,
    "mp.Pool forkserver": forkserver_pool,
    "ProcessPoolExecutor": process_pool_executor,
    "loky": loky,
    "pebble": pebble,
    "mpire": mpire,
    "billiard": billiard,
    "Executor.submit": executor,
    "Executor.map": executor_map,
}


# The code that runs in the process of a pool.


def run_in_process(measurement, name, tasks):
    """Runs a pool in one round and prints the measurement as JSON."""
    if name == "supervise map":
        figures = MAPS[measurement](tasks)
    else:
        with OPENERS[name](measurement == "fresh") as (many, one):
            figures = POOLS[measurement](many, one, tasks)
    print(json.dumps(figures), flush=True)


def warm(many):
    """Returns when both workers have run a task."""
    from bench_tasks import nap, same

    for _ in range(100):
        if len(set(many(nap, range(2 * WORKERS)))) >= WORKERS:
            break
    else:
        raise RuntimeError("only one worker runs tasks")
    check(sum(many(same, range(200))) == sum(range(200)))


def check(right):
    if not right:
        raise RuntimeError("wrong results")


def percentiles(times):
    times.sort()
    return {"p50": times[len(times) // 2] / 1000, "p99": times[len(times) * 99 // 100] / 1000}


def noop(many, one, tasks):
    from bench_tasks import same

    warm(many)
    start = time.perf_counter()
    total = sum(many(same, range(tasks)))
    took = time.perf_counter() - start
    check(total == sum(range(tasks)))
    return {"rate": tasks / took}


def roundtrip(many, one, tasks):
    from bench_tasks import same

    warm(many)
    times = []
    for number in range(tasks):
        start = time.perf_counter_ns()
        result = one(same, number)
        times.append(time.perf_counter_ns() - start)
        check(result == number)
    return percentiles(times)


def payload(many, one, tasks):
    from bench_tasks import same

    warm(many)
    items = [os.urandom(PAYLOAD)] * tasks
    start = time.perf_counter()
    length = sum(map(len, many(same, items)))
    took = time.perf_counter() - start
    check(length == tasks * PAYLOAD)
    return {"rate": tasks / took}


def fresh(many, one, tasks):
    from bench_numpy import total

    list(many(total, range(2 * WORKERS)))
    start = time.perf_counter()
    results = list(many(total, range(tasks)))
    took = time.perf_counter() - start
    return fresh_rate(results, tasks, took)


def fresh_rate(results, tasks, took):
    check(len(results) == tasks and all(result == 45 for _, result in results))
    processes = len({process for process, _ in results})
    if processes < tasks:
        raise RuntimeError(f"only {processes} processes for {tasks} tasks")
    return {"rate": tasks / took}


POOLS = {"noop": noop, "roundtrip": roundtrip, "payload": payload, "fresh": fresh}


def map_command(function, *options):
    command = [os.environ["SUPERVISE_BINARY"], "map", "--workers", str(WORKERS), "--python", sys.executable]
    return [*command, *options, function]


def map_files(tasks, function, *options):
    """Runs it from a file to a file. Returns the results and the time in seconds."""
    Path("tasks").write_text("".join(f"{number}\n" for number in range(tasks)))
    command = map_command(function, "--input", "tasks", "--output", "results", *options)
    start = time.perf_counter()
    subprocess.run(command, check=True)
    took = time.perf_counter() - start
    with open("results") as lines:
        return [json.loads(line)["result"] for line in lines], took


def map_noop(tasks):
    results, took = map_files(tasks, "bench_tasks:same")
    check(len(results) == tasks and sum(results) == sum(range(tasks)))
    return {"rate": tasks / took}


def map_fresh(tasks):
    results, took = map_files(tasks, "bench_numpy:total", "--max-tasks", "1")
    return fresh_rate(results, tasks, took)


def map_roundtrip(tasks):
    pipe = subprocess.PIPE
    times = []
    with subprocess.Popen(map_command("bench_tasks:same"), stdin=pipe, stdout=pipe) as process:
        for number in range(200 + tasks):
            start = time.perf_counter_ns()
            process.stdin.write(b"%d\n" % number)
            process.stdin.flush()
            line = process.stdout.readline()
            times.append(time.perf_counter_ns() - start)
            check(json.loads(line)["result"] == number)
        process.stdin.close()
    check(process.returncode == 0)
    return percentiles(times[200:])


MAPS = {"noop": map_noop, "fresh": map_fresh, "roundtrip": map_roundtrip}


# The code that runs the pools in turn.


def end(process):
    """Kills a process and its process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def run_pool(measurement, name, tasks, folder):
    """Runs a pool in one round, in its own process. Returns the measurement, or the reason of the failure."""
    code = "import sys, pools; pools.run_in_process(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
    command = [sys.executable, "-c", code, measurement, name, str(tasks)]
    # Files and not pipes, because a process that outlives this one would keep a pipe open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=errors, start_new_session=True)
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
        out.seek(0)
        errors.seek(0)
        text = errors.read()
        if code == 0:
            return json.loads(out.read().splitlines()[-1])
    if code is None:
        return "hang"
    sys.stderr.write(text)
    reasons = [line for line in text.splitlines() if re.match(r"[\w.]*[A-Z]\w*: ", line)]
    return reasons[-1] if reasons else f"status {code}"


def play(measurement, rounds, names, folder):
    """Runs all rounds. Returns for each round the measurements by pool."""
    played = []
    for number in range(rounds):
        first = number % len(names)
        figures = {}
        for name in names[first:] + names[:first]:
            figures[name] = run_pool(measurement, name, TASKS[measurement][name], folder)
            print(f"{measurement} {number + 1}/{rounds} {name}: {figures[name]}", file=sys.stderr)
        played.append(figures)
    return played


def shown(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def figure(played, name, column):
    values = [figures[name][column] for figures in played if isinstance(figures[name], dict)]
    failures = [figures[name] for figures in played if isinstance(figures[name], str)]
    cell = ""
    if values:
        cell = f"{shown(statistics.median(values))} ({shown(min(values))}–{shown(max(values))})"
    if failures:
        reasons = "; ".join(dict.fromkeys(failures)).replace("|", "\\|")
        cell += f" {len(failures)} of {len(played)}: {reasons}" if values else reasons
    return cell


def ratio(played, name, column, base):
    both = [(figures[name], figures[base]) for figures in played]
    both = [(mine, its) for mine, its in both if isinstance(mine, dict) and isinstance(its, dict)]
    ratios = [mine[column] / its[column] for mine, its in both]
    return f"{statistics.median(ratios):.2f}" if ratios else ""


def report(measurement, played):
    columns = COLUMNS.get(measurement, RATES)
    bases = [base for base in ("mp.Pool", "mp.Pool forkserver") if base in played[0]]
    titles = ["pool", "tasks", *columns.values()]
    for base in bases:
        titles += [f"{column} to {base}" if len(columns) > 1 else f"to {base}" for column in columns]
    print(f"\n### {measurement}\n")
    print("| " + " | ".join(titles) + " |")
    print("|---" * len(titles) + "|")
    for name in played[0]:
        tasks = TASKS[measurement][name]
        cells = [LABELS.get(name, name), f"{tasks:,}"]
        cells += [figure(played, name, column) for column in columns]
        cells += [ratio(played, name, column, base) for base in bases for column in columns]
        print("| " + " | ".join(cells) + " |")
    sys.stdout.flush()


def resident(process):
    """The resident memory of a process in kilobytes, without its children."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def memory(tasks, folder):
    """Streams tasks through `supervise map` and prints its memory during the run."""
    command = map_command("bench_tasks:same")
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    marks, samples = {}, []

    def feed():
        waits = [10, 50, 100]
        try:
            with process.stdin as lines:
                for first in range(0, tasks, 1000):
                    numbers = range(first, min(first + 1000, tasks))
                    lines.write(b"".join(b"%d\n" % number for number in numbers))
                    if 100 * numbers.stop >= waits[0] * tasks:
                        marks[waits.pop(0)] = resident(process)
        except BrokenPipeError:
            pass  # Its exit status is reported below.

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    deadline = start + max(LIMIT, tasks / 5_000)
    while process.poll() is None and time.perf_counter() < deadline:
        try:
            samples.append(resident(process))
            process.wait(1)
        except (subprocess.TimeoutExpired, TypeError):  # The sample is late, or the process is a zombie.
            pass
    took = time.perf_counter() - start
    if process.poll() is None:
        process.kill()
        process.wait()
    feeder.join(10)
    endings = {0: f"{tasks / took:,.0f}", -signal.SIGKILL: "hang"}
    print("\n### memory\n")
    print("| tasks | RSS after 10 %, MB | 50 % | 100 % | most of each second | tasks/s |")
    print("|---|---|---|---|---|---|")
    cells = [f"{marks[mark] / 1024:.1f}" if mark in marks else "" for mark in (10, 50, 100)]
    cells = [f"{tasks:,}", *cells, f"{max(samples, default=0) / 1024:.1f}"]
    cells.append(endings.get(process.returncode, f"status {process.returncode}"))
    print("| " + " | ".join(cells) + " |", flush=True)


def prepare(place):
    """The Python of an environment with the other pools. The tables show which pools cannot be installed."""
    python = place / "bin" / "python"
    stamp = place / "requirements"
    wanted = "\n".join([*REQUIREMENTS, platform.python_version()])
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"making {place}", file=sys.stderr)
    venv.create(place, clear=True, with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, *REQUIREMENTS]).returncode != 0:
        for requirement in REQUIREMENTS:
            subprocess.run([*pip, requirement])
    else:
        stamp.write_text(wanted)
    return python


def versions():
    for name in REQUIREMENTS:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} (not installed)"


def arguments():
    names = [*TASKS, "memory"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    choices = "measurements: " + ", ".join(names)
    parser.add_argument("--only", default=",".join(names), metavar="NAME,NAME", help=choices)
    pools = list(dict.fromkeys(name for tasks in TASKS.values() for name in tasks))
    parser.add_argument("--pools", default=",".join(pools), metavar="NAME,NAME", help="pools: " + ", ".join(pools))
    parser.add_argument("--tasks", type=int, default=10_000_000, metavar="N", help="tasks of `memory`")
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/supervise", metavar="PATH")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venvs/pools", metavar="PATH")
    options = parser.parse_args()
    options.only, options.pools = options.only.split(","), options.pools.split(",")
    for chosen, known, what in ((options.only, names, "measurement"), (options.pools, pools, "pool")):
        for name in chosen:
            if name not in known:
                parser.error(f"unknown {what} {name!r}. hint: choose from {', '.join(known)}")
    if options.rounds < 1 or options.tasks < 1:
        parser.error("--rounds and --tasks must be at least 1")
    if not os.access(options.binary, os.X_OK):
        parser.error(f"{options.binary} does not exist. hint: run `cargo build --release`, or give --binary PATH")
    return options


def main():
    options = arguments()
    place = options.venv.absolute()
    if not place.is_dir() or not os.path.samefile(sys.prefix, place):
        python = prepare(place)
        os.execv(python, [python, __file__, *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bench_tasks.py").write_text(TASKS_MODULE)
        Path(folder, "bench_numpy.py").write_text(NUMPY_MODULE)
        paths = [folder, str(ROOT / "benches"), str(ROOT / "python")]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        os.environ["SUPERVISE_BINARY"] = str(options.binary.absolute())
        print(f"Python {platform.python_version()}, {', '.join(versions())}; {WORKERS} workers")
        for measurement in TASKS:
            pools = [name for name in TASKS[measurement] if name in options.pools]
            if measurement in options.only and pools:
                report(measurement, play(measurement, options.rounds, pools, folder))
        if "memory" in options.only:
            memory(options.tasks, folder)


if __name__ == "__main__":
    main()
