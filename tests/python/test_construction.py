"""Requests to the agent do not harm objects that C code is still building, in any thread.

    python test_construction.py AGENT        AGENT is the folder that holds the package of the agent

Several threads build objects (`builders.py`). Meanwhile the main thread answers requests as fast as it can.
SUPERVISE_FUZZ_S sets the duration in seconds, 5 by default.
"""

import collections
import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import time
import traceback

from builders import BUILDERS, MISSING

SECONDS = float(os.environ.get("SUPERVISE_FUZZ_S") or 5)
THREADS = 4

failures = []
counts = collections.Counter()
is_over = False


def build(until):
    while not is_over and time.monotonic() < until and len(failures) < 5:
        builder = random.choice(BUILDERS)
        try:
            builder()
            counts[builder.__name__] += 1
        except BaseException:
            failures.append((builder.__name__, traceback.format_exc()))


def main():
    global is_over
    if MISSING:
        print("NOT RUN: these packages are missing: %s" % ", ".join(MISSING), file=sys.stderr)
    faulthandler.enable()
    sys.path.insert(0, sys.argv[1])
    from _agent import ask, state

    asked = collections.Counter()
    requests = [{"do": "report", "time_budget_s": 1.0}, {"do": "base"}, {"do": "open"}, {"do": "close"}, {"do": "gc"},
                 {"do": "report", "time_budget_s": 0.3}, {"do": "open", "base": True},
                 {"do": "report", "time_budget_s": 0.5}]

    def handle_request(signum, frame):
        # The same as ask.answer(), without its files.
        if ask.busy:
            return
        ask.busy = True
        gc.disable()
        try:
            request = requests[sum(asked.values()) % len(requests)]
            ask.dispatch(request, frame, time.monotonic())
            asked[request["do"]] += 1
        except Exception:
            failures.append(("request", traceback.format_exc()))
        finally:
            gc.enable()
            ask.busy = False
            frame = None

    def send_requests(until):
        while not is_over and time.monotonic() < until and len(failures) < 5:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.005)

    signal.signal(signal.SIGUSR1, handle_request)
    sys.setswitchinterval(1e-5)
    # First with threads, then in the main thread alone, as in a sync worker.
    until = time.monotonic() + SECONDS * 0.7
    threads = [threading.Thread(target=build, args=(until,), daemon=True) for _ in range(THREADS)]
    threads.append(threading.Thread(target=send_requests, args=(until,), daemon=True))
    for thread in threads:
        thread.start()
    build(until)
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    until = time.monotonic() + SECONDS * 0.3
    sender = threading.Thread(target=send_requests, args=(until,), daemon=True)
    sender.start()
    build(until)
    sender.join(60)
    is_over = True
    for name, text in failures:
        print(name, text, file=sys.stderr)
    assert not failures, "%d failures" % len(failures)
    assert asked["report"] >= 3, asked
    missing = [builder.__name__ for builder in BUILDERS if not counts[builder.__name__]]
    assert not missing, "never run: %s" % missing
    assert state.of_process().base is not None
    print("OK", sys.version.split()[0], dict(asked), sum(counts.values()), "built", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
