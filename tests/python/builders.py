"""Functions that build objects by C code that calls back into Python code before they are finished, and check them.

Another thread or a request to the agent may run at that point: the object exists, gc may know it, and it is not
complete. `BUILDERS` are the functions for the packages that are installed.
"""

import asyncio
import collections
import copy
import csv
import ctypes
import functools
import itertools
import json
import marshal
import os
import pickle
import random
import re
import sqlite3
import time

Point = collections.namedtuple("Point", "x y z")
kept = collections.deque(maxlen=2000)
holders = {"rows": [], "by_key": {}}


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


def futures():
    """asyncio keeps freed iterators of futures in a list of its module."""
    loop = asyncio.new_event_loop()
    for _ in range(20):
        all = [loop.create_future() for _ in range(20)]
        iterators = [iter(one) for one in all]
        assert [next(iterator) for iterator in slowly(iterators)] == all
        for number, one in enumerate(all):
            one.set_result(number)
        for number, iterator in enumerate(slowly(iterators)):
            try:
                next(iterator)
            except StopIteration as stop:
                assert stop.value == number
            else:
                raise AssertionError
    loop.close()


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


def structures():
    """orjson fills dictionaries and lists, and calls a function for what it does not know."""
    rows = [{"n": n, "rows": [n, [n], {"k": "v" * n}], "one": Counted(n)} for n in range(40)]
    text = orjson.dumps(rows, default=lambda one: [key(one.number)])
    assert orjson.loads(text)[39] == {"n": 39, "rows": [39, [39], {"k": "v" * 39}], "one": [39]}
    assert orjson.loads(orjson.dumps({"a": tuple(range(200))}))["a"] == list(range(200))
    holders["by_key"][random.randrange(500)] = orjson.loads(text)[:3]


class Target:
    """Gets the events of an XML parser."""

    def __init__(self):
        self.names = []

    def start(self, tag, attributes):
        self.names.append((key(tag), dict(attributes)))

    def end(self, tag):
        pass

    def data(self, text):
        time.sleep(0)

    def close(self):
        return tuple(slowly(self.names))


def documents():
    text = b"<r>" + b"".join([b"<e n='%d'>t<f/></e>" % n for n in range(60)]) + b"</r>"
    root = etree.fromstring(text)
    assert [int(one.get("n")) for one in slowly(root)] == list(range(60))
    assert len(root.xpath("//e[@n > 29]")) == 30
    spaces = etree.FunctionNamespace("urn:builders")
    spaces["slow"] = lambda context, number: key(float(number[0]) * 2)
    found = root.xpath("//e[b:slow(@n) > 100]/@n", namespaces={"b": "urn:builders"})
    assert found == [str(n) for n in range(51, 60)], found
    assert len(etree.XML(text, etree.XMLParser(target=Target()))) == 121
    assert len(list(etree.iterwalk(root, events=("start", "end")))) == 242
    assert etree.tostring(copy.deepcopy(root)) == etree.tostring(root)
    kept.append(root)


def messages():
    """protobuf fills repeated fields and maps from iterators."""
    message = struct_pb2.ListValue()
    message.values.extend(slowly([struct_pb2.Value(number_value=n) for n in range(100)]))
    assert [one.number_value for one in slowly(message.values)] == list(range(100))
    struct = struct_pb2.Struct()
    struct.update({"n%d" % n: [n, {"k": "v"}] for n in slowly(range(30))})
    copied = struct_pb2.Struct.FromString(struct.SerializeToString())
    assert copied == struct and copied["n29"][0] == 29
    other = struct_pb2.ListValue.FromString(message.SerializeToString())
    message.values.MergeFrom(other.values)
    message.values.sort(key=lambda one: key(one.number_value))
    assert len(message.values) == 200 and message.values[199].number_value == 99
    kept.append(copied)


BUILDERS = [tuples, zips, maps, sorting, sets, dictionaries, texts, named, parsing, pickles, databases, combinations,
            objects, variables, futures, api]
# The packages that builders need and that are not installed.
MISSING = []
try:
    import numpy
    BUILDERS.append(arrays)
except ImportError:
    MISSING.append("numpy")
try:
    import orjson
    BUILDERS.append(structures)
except ImportError:
    MISSING.append("orjson")
try:
    from lxml import etree
    BUILDERS.append(documents)
except ImportError:
    MISSING.append("lxml")
try:
    from google.protobuf import struct_pb2
    BUILDERS.append(messages)
except ImportError:
    MISSING.append("protobuf")
