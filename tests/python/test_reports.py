"""Reports name the holder, the line and the cause, with and without a base and tracing windows.

    python test_reports.py AGENT [CASE...]        AGENT is the folder that holds the package of the agent

Each case grows by some megabytes in a process of its own, forked from this one, and makes a report there.
"""

import atexit
import contextvars
import functools
import gc
import logging
import os
import sys
import threading
import time
import types

CALLS = 400
cache = {}
errors = []
callbacks = []
coroutines = []
trail = contextvars.ContextVar("trail")


def rows(number):
    return ["row %d of %d" % (row, number) for row in range(400)]


def fill_cache(number):
    cache[number] = rows(number)


class Profile:
    def __init__(self, number):
        self.rights = rows(number)

    @functools.lru_cache(maxsize=None)  # noqa: B019
    def may(self, right):
        return right in self.rights


def ask_profile(number):
    Profile(number).may("read")


class Scanner:
    def __init__(self, number):
        self.policies = rows(number)
        atexit.register(self.close)

    def close(self):
        self.policies.clear()


def deep(calls, number):
    if calls:
        return deep(calls - 1, number)
    kept = rows(number)
    raise ValueError(len(kept))


def keep_error(number):
    try:
        deep(12, number)
    except ValueError as error:
        errors.append(error)


def load_module(number):
    module = types.ModuleType("rules_%d" % number)
    module.RULES = rows(number)
    sys.modules[module.__name__] = module


class Memory(logging.Handler):
    def __init__(self, number):
        super().__init__()
        self.rows = rows(number)


def add_handler(number):
    logging.getLogger("orders").addHandler(Memory(number))


def create_logger(number):
    logging.getLogger("request.%d" % number).addHandler(Memory(number))


def start_thread(number):
    def wait(kept, event=threading.Event()):  # noqa: B008
        event.wait()

    if number % 8 == 0:
        threading.Thread(target=wait, args=([rows(n) for n in range(8)],), daemon=True).start()


def register(number):
    kept = rows(number)
    callbacks.append(lambda: kept)


async def send(kept):
    return kept


def forget_to_await(number):
    coroutines.append(send(rows(number)))


def set_variable(number):
    trail.set([*trail.get([]), rows(number)])


# {what grows: (holder, advice)}. The advice is a part of the text.
CASES = {
    fill_cache: ("cache", "limit its size"),
    ask_profile: ("Profile.may", "caches a method"),
    Scanner: ("atexit", "atexit.unregister()"),
    keep_error: ("errors", "traceback.format_exc()"),
    load_module: ("sys.modules['rules_*']", "loaded again and again"),
    add_handler: (None, "handlers are added to logger 'orders'"),
    create_logger: (None, "one logger for each module"),
    start_thread: (None, "threads that run"),
    forget_to_await: ("coroutines", "are not awaited"),
    register: ("callbacks", "callbacks that are never removed"),
    set_variable: ("context variables of a thread", "context variable 'trail'"),
}


# Not right yet: with some builds of 3.11 and without figures to compare with, the report names thread-local data.
WRONG = ((add_handler, "none"),)


def report_of(grow, form):
    """The report of a process in which `grow` was called many times: of a `job`, which may be interrupted, of a worker
    of a `server`, of which the base is taken in parts, or of one of which nothing is known (`none`)."""
    from _agent import allocators, base, report, state, windows

    # The reports must be right on a busy machine, too.
    base.WHOLE_SECONDS = windows.CLOSE_SECONDS = 20
    baseline = allocators.private()
    mine = state.of_process()
    if form == "server":
        mine.base = base.Base()
        for _ in mine.base.parts():
            pass
    for number in range(CALLS):
        if form != "none" and number == CALLS // 2:
            windows.open({"base": form == "job"}, sys._getframe(), time.monotonic())
        if number == 0 and form == "job":
            base.take_whole(mine, 1 << 40, time.monotonic())
        grow(number)
        if form != "none" and number == CALLS // 2 + 40:
            windows.close(sys._getframe(), time.monotonic())
    gc.disable()
    return report.make({"baseline": baseline, "time_budget_s": 20}, sys._getframe(), time.monotonic())


def check(grow, form):
    holder, advice = CASES[grow]
    report = report_of(grow, form)
    text = "%s, %s: %s\n" % (grow.__name__, form, report["next"])
    for suspect in report["suspects"]:
        text += "    %(growth_bytes)d %(where)s %(type)s %(count)d %(holder)s %(chain)s\n" % suspect
    first = report["suspects"][:3]
    assert report["verdict"] == "python", report["verdict"] + " " + text
    assert holder is None or any(one["holder"] and one["holder"].endswith(holder) for one in first), text
    assert advice.lower() in report["next"].lower(), text
    if form != "none":
        assert any((one["where"] or "").startswith(__file__) for one in first), text


def in_a_fork(check, *arguments):
    """Whether a check passes in a forked process."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            check(*arguments)
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def check_traces():
    """A trace ends at the agent's frame. What the agent itself allocated has no frames."""
    from _agent import ask, source_locations

    ours = (ask.DIR + "/_agent/counting.py", 1)
    also_ours = (ask.__file__, 1)
    app = (__file__, 2)
    standard = (os.__file__, 3)
    assert source_locations.outside((app, standard, ours, standard)) == (app, standard)
    assert source_locations.outside((standard, also_ours, app)) == ()
    assert source_locations.outside((ours, app)) == ()
    assert source_locations.outside((standard, app)) == (standard, app)


def check_versions():
    """The advice begins with a version of CPython that grows by itself."""
    from _agent import advice

    assert advice.of_version((3, 14, 4, "final", 0)).startswith("This is CPython 3.14.4")
    assert advice.of_version((3, 14, 5, "final", 0)) == ""
    assert advice.of_version((3, 13, 9, "final", 0)) == ""


def check_uncounted():
    """Without a count of the objects, large ones are not taken for memory outside Python."""
    from _agent import allocators, report

    request = {"baseline": allocators.private(), "time_budget_s": 0.05}
    kept = [b"x" * 100000 for _ in range(CALLS)]
    uncounted = report.make(request, sys._getframe(), time.monotonic())
    assert "census: no time left" in uncounted["missing"], uncounted["missing"]
    assert uncounted["verdict"] == "unknown", uncounted["verdict"]
    counted = report.make({**request, "time_budget_s": 20}, sys._getframe(), time.monotonic())
    assert counted["verdict"] == "python", (counted["verdict"], len(kept))


def check_withdrawn():
    """A report that is withdrawn while it is made is no report."""
    from _agent import ask, protocol, report

    looked = report.look
    withdrawn = []

    def look(*arguments):
        try:
            return looked(*arguments)
        finally:
            withdrawn.append(True)

    report.look = look
    request = {"protocol": protocol.VERSION, "do": "report", "time_budget_s": 20, "withdrawn": lambda: withdrawn != []}
    said = ask.dispatch(request, sys._getframe(), time.monotonic())
    assert said == {"ok": False, "error": "it was withdrawn before it was complete"}, said


def main():
    sys.path.insert(0, sys.argv[1])
    wanted = sys.argv[2:]
    checks = [(check_traces,), (check_versions,), (check_uncounted,), (check_withdrawn,)]
    for grow in CASES:
        if not wanted or grow.__name__ in wanted:
            checks += [(check, grow, form) for form in ("job", "server", "none") if (grow, form) not in WRONG]
    failed = [one for one in checks if not in_a_fork(*one)]
    assert not failed, failed
    print("OK", flush=True)


if __name__ == "__main__":
    main()
