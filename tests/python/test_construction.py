"""Requests to the agent do not harm objects that C code is still building, in any thread.

    python test_construction.py AGENT        AGENT is the folder that holds the package of the agent

Several threads build objects by C functions that call back into Python code before they finish. Another thread or a
request may run at that point: the object exists, gc may know it, and it is not complete. Meanwhile the main thread
answers requests as fast as it can. SUPERVISE_FUZZ_S sets the duration in seconds, 5 by default.
"""

import collections
import copy
import csv
import ctypes
import faulthandler
import functools
import gc
import itertools
import json
import marshal
import os
import pickle
import random
import re
import signal
import sqlite3
import sys
import threading
import time
import traceback

SECONDS = float(os.environ.get("SUPERVISE_FUZZ_S") or 5)
THREADS = 4

Point = collections.namedtuple("Point", "x y z")
kept = collections.deque(maxlen=2000)
holders = {"rows": [], "by_key": {}}
failures = []
counts = collections.Counter()
is_over = False


def slowly(items):
    """Yields the items, and sometimes releases the GIL inside the C function that iterates over them."""
    for number, item in enumerate(items):
        if number % 13 == 5:
            time.sleep(0)
        yield item


def key(item):
    if random.random() < 0.1:
        time.sleep(0)
    return item


class Counted:
    """An object whose unpickling runs Python code."""

    def __init__(self, number):
        time.sleep(0)
        self.number = number

    def __reduce__(self):
        return Counted, (self.number,)

    def __eq__(self, other):
        return self.number == other.number

    def __hash__(self):
        return hash(self.number)

    def __iter__(self):
        time.sleep(0)
        return iter((self.number,))


class Slots:
    __slots__ = ("first", "second")

    def __new__(cls, value):
        self = object.__new__(cls)
        time.sleep(0)
        self.first = value
        time.sleep(0)
        self.second = value
        return self


def tuples():
    assert tuple(slowly(range(300))) == tuple(range(300))
    assert len((lambda *all: all)(*slowly(range(100)))) == 100


def zips():
    rows = [tuple(slowly(range(n, n + 20))) for n in range(10)]
    assert list(zip(*slowly(rows)))[3] == tuple(range(3, 13))
    assert list(zip(*[Counted(n) for n in range(20)])) == [tuple(range(20))]
    assert sum([a * b for a, b in zip(slowly(range(50)), slowly(range(50)))]) == 40425
    assert list(itertools.zip_longest(slowly(range(3)), slowly(range(5))))[4] == (None, 4)


def maps():
    assert list(map(key, slowly(range(100)))) == list(range(100))
    assert list(enumerate(slowly("abc" * 20)))[59] == (59, "c")
    assert list(itertools.starmap(max, slowly([(1, 2)] * 40))) == [2] * 40


def sorting():
    items = list(range(500))
    random.shuffle(items)
    assert sorted(items, key=key) == list(range(500))
    items.sort(key=key)
    assert items == list(range(500))
    assert min(items, key=key) == 0


def sets():
    assert frozenset(slowly(range(200))) == frozenset(range(200))
    assert set(slowly(range(200))) == set(range(200))
    assert len(frozenset(Counted(n) for n in range(30))) == 30
    assert marshal.loads(marshal.dumps(frozenset(range(100)))) == frozenset(range(100))


def dictionaries():
    assert len(dict(slowly([(n, [n]) for n in range(200)]))) == 200
    assert len({n: [n] for n in slowly(range(200))}) == 200
    assert len(dict.fromkeys(slowly(range(200)), [])) == 200
    made = collections.OrderedDict(slowly([(n, n) for n in range(100)]))
    assert [a for a, b in slowly(made.items())] == list(range(100))
    assert collections.Counter(slowly("abc" * 30))["a"] == 30


def texts():
    assert len("".join(slowly("abc" * 50))) == 150
    assert len(b"".join(slowly([b"abc"] * 50))) == 150
    assert len(bytes(slowly(range(200)))) == 200
    assert len(re.sub("[a-c]", lambda found: key(found.group()), "abcd" * 50)) == 200
    assert re.split("(x)", "axbxc" * 10)[1] == "x"


def named():
    assert Point(*slowly(range(3))) == (0, 1, 2)
    assert Point._make(slowly(range(3))).z == 2
    assert time.struct_time(slowly(range(9)))[8] == 8
    assert os.stat("/").st_mode
    holders["by_key"][random.randrange(500)] = Point([1], [2], [3])


def parsing():
    text = json.dumps([{"n": n, "rows": [1, 2, [3]]} for n in range(30)])
    assert len(json.loads(text, object_hook=key)) == 30
    assert len(json.loads(text, object_pairs_hook=lambda pairs: dict(slowly(pairs)))) == 30
    assert json.dumps([Counted(1)] * 20, default=lambda one: [key(one.number)]).count("1") == 20
    assert len(list(csv.reader(slowly(["a,b,c"] * 50)))) == 50


def pickles():
    things = [Counted(1), (Counted(2), frozenset([Counted(3)])), {Counted(4): Point(1, Counted(5), 2)}]
    assert pickle.loads(pickle.dumps(things)) == things
    assert copy.deepcopy(things) == things


def databases():
    sqlite3.register_converter("slow", lambda text: key(text))
    base = sqlite3.connect(":memory:", detect_types=sqlite3.PARSE_DECLTYPES)
    base.execute("create table t (a slow, b slow, c slow)")
    base.executemany("insert into t values (?, ?, ?)", slowly([(1, 2, 3)] * 20))
    assert base.execute("select * from t").fetchall() == [(b"1", b"2", b"3")] * 20
    base.close()


def combinations():
    assert len(list(itertools.combinations(slowly(range(8)), 3))) == 56
    assert len(list(itertools.product(slowly(range(5)), slowly(range(5))))) == 25
    assert functools.reduce(max, slowly(range(100))) == 99


def objects():
    assert [Slots(n).second for n in range(20)] == list(range(20))
    holders["rows"].append([tuple(slowly(range(30))), {"n": [1]}, frozenset((1, 2))])
    if len(holders["rows"]) > 3000:
        del holders["rows"][:]
    kept.append(lambda default=[1], point=Point(1, 2, 3): (default, point))  # noqa: B008


def variables(first=1):
    """The dictionary from locals() does not get variables that are set later."""
    names = locals()
    later = [key(number) for number in slowly(range(30))]
    assert "later" not in names, names
    second = sum(later)
    assert (first, second) == (1, 435)


def api():
    """Builds lists and tuples as extension modules do, running Python code between the items."""
    calls = ctypes.pythonapi
    for make, put in ((calls.PyList_New, calls.PyList_SetItem), (calls.PyTuple_New, calls.PyTuple_SetItem)):
        # Separate prototypes, because other threads use these functions as well.
        make = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_ssize_t)(ctypes.cast(make, ctypes.c_void_p).value)
        put = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.py_object)(
            ctypes.cast(put, ctypes.c_void_p).value)
        made = make(600)
        for number in range(600):
            item = [number]
            calls.Py_IncRef(ctypes.py_object(item))
            put(made, number, item)
            if number % 97 == 0:
                time.sleep(0)
        thing = ctypes.cast(made, ctypes.py_object).value
        calls.Py_DecRef(ctypes.py_object(thing))
        assert len(thing) == 600 and thing[599] == [599]
    make = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(
        ctypes.cast(calls.PyFrozenSet_New, ctypes.c_void_p).value)
    put = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.py_object)(
        ctypes.cast(calls.PySet_Add, ctypes.c_void_p).value)
    made = make(None)
    for number in range(60):
        put(made, number)
        if number % 17 == 0:
            time.sleep(0)
    thing = ctypes.cast(made, ctypes.py_object).value
    calls.Py_DecRef(ctypes.py_object(thing))
    assert len(thing) == 60


def arrays():
    things = numpy.array([Counted(n) for n in range(30)], dtype=object)
    assert things[::-1].tolist()[0].number == 29
    assert numpy.fromiter(slowly(range(100)), dtype=int).sum() == 4950
    assert (things == things).all()
    assert len(numpy.array([list(slowly(range(5))) for _ in range(20)])) == 20
    grows = numpy.zeros(20000)
    holder = [grows]
    time.sleep(0)
    assert holder.pop() is grows
    kept.append(numpy.zeros(30000))


BUILDERS = [tuples, zips, maps, sorting, sets, dictionaries, texts, named, parsing, pickles, databases, combinations,
            objects, variables, api]
try:
    import numpy
    BUILDERS.append(arrays)
except ImportError:
    print("NOT RUN: arrays need numpy", file=sys.stderr)


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
