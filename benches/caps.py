#!/usr/bin/env python3
"""The effect of a few tasks that need five times their cap on the machine and on the other tasks.

    python3 benches/caps.py [--rounds N] [--binary PATH]

Needs a built `supervise` (target/release/supervise or `--binary`) and root or a delegated control group. In each round
`supervise map` runs 1,000 tasks twice, in alternating order: once all of them are good (20 MB and 5 ms of work), and
once ten of them need 500 MB. The cap is 100 MB for each of two workers, and the budget 300 MB. Prints a Markdown table
with the median (min-max) of the rounds:

tasks     the median and the 99th percentile of the time in the worker, of the 990 good tasks
wall      the time of the whole run, and its ratio to the run with only good tasks in the same round
held      the maximum memory of all workers, fork servers and the template together, in samples 2 ms apart
machine   the maximum decrease of the machine's available memory (MemAvailable) in the same samples. It is coarse, since
          pages that were just freed are in lists of each CPU and do not count as free
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TASKS = 1_000
EACH = 100
BUDGET_MB = 300
SAMPLE = 0.002
MODULE = """\
import time

def task(number):
    kept = b'x' * ((500 if number < 0 else 20) << 20)
    end = time.perf_counter() + 0.005
    while time.perf_counter() < end:
        pass
    return len(kept)
"""


def group(process):
    """The folder of the control group of all workers. None if it does not exist yet."""
    lines = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        roots = ["/sys/fs/cgroup/memory"] if controllers == "memory" else ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        if controllers not in ("", "memory"):
            continue
        for root in roots:
            # With cgroup v2 `supervise` has moved itself to a leaf next to it.
            for base in (Path(root + path), Path(root + path).parent):
                for found in base.glob(f"supervise-*.{process.pid}"):
                    if (found / "memory.stat").is_file():
                        return found
    return None


def held(folder):
    """The unreclaimable memory of a group in megabytes."""
    entries = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    names = ("total_rss", "total_shmem") if "total_rss" in entries else ("anon", "shmem")
    return sum(int(entries[name]) for name in names) / 2**20


def available():
    text = Path("/proc/meminfo").read_text()
    return int(re.search(r"MemAvailable:\s+(\d+)", text)[1]) / 1024


def play(binary, hogs):
    """Runs the tasks once. Returns the measurements."""
    numbers = [-number if hogs and number % EACH == EACH // 2 else number for number in range(TASKS)]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bench_caps.py").write_text(MODULE)
        Path(folder, "in").write_text("".join(f"{number}\n" for number in numbers))
        command = [binary, "map", "--workers", "2", "--cap", "100M", "--budget", f"{BUDGET_MB}M",
                   "-i", "in", "-o", "out", "bench_caps:task"]  # fmt: skip
        time.sleep(1)  # Until the memory of the previous run is freed.
        before, start = available(), time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
        most, fell, place = 0.0, 0.0, None
        while process.poll() is None:
            fell = max(fell, before - available())
            try:
                place = place or group(process)
                most = max(most, held(place)) if place else most
            except OSError:
                pass  # The run is ending.
            time.sleep(SAMPLE)
        wall = time.perf_counter() - start
        results = [json.loads(line) for line in Path(folder, "out").read_text().splitlines()]
    good = sorted(1000 * result["seconds"] for result in results if result["ok"])
    bad = [result for result in results if not result["ok"]]
    wrong = [result for result in bad if result["error"]["cause"] != "cap"]
    if len(results) != TASKS or len(bad) != (TASKS // EACH if hogs else 0) or wrong:
        sys.exit(f"{len(results)} results, {len(bad)} errors: {wrong[:3]}")
    if place is None:
        sys.exit("no control group found. hint: run as root or in a delegated control group")
    peaks = [result["peak"] / 2**20 for result in bad]
    return {
        "p50, ms": good[len(good) // 2],
        "p99, ms": good[len(good) * 99 // 100],
        "wall, s": wall,
        "held, MB": most,
        "machine, MB": fell,
        "peaks of errors, MB": statistics.median(peaks) if peaks else 0.0,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/supervise", metavar="PATH")
    options = parser.parse_args()
    if not os.access(options.binary, os.X_OK):
        parser.error(f"{options.binary} does not exist. hint: run `cargo build --release`, or give --binary PATH")
    kinds = {"all good": False, "ten want 500 MB": True}
    played = {kind: [] for kind in kinds}
    for number in range(options.rounds):
        for kind, hogs in list(kinds.items())[:: 1 if number % 2 else -1]:
            played[kind].append(play(options.binary.absolute(), hogs))
            print(f"{number + 1}/{options.rounds} {kind}: {played[kind][-1]}", file=sys.stderr)
    titles = list(played["all good"][0])
    print(f"Budget {BUDGET_MB} MB, cap 100 MB, 2 workers, {TASKS:,} tasks, {options.rounds} rounds\n")
    print("| tasks | " + " | ".join(titles) + " | wall to all good |")
    print("|---" * (len(titles) + 2) + "|")
    for kind, rounds in played.items():
        cells = [kind]
        for title in titles:
            values = [figures[title] for figures in rounds]
            cells.append(f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})")
        ratios = [mine["wall, s"] / its["wall, s"] for mine, its in zip(rounds, played["all good"], strict=True)]
        cells.append(f"{statistics.median(ratios):.2f}")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
