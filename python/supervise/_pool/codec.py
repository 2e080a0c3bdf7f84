"""Decodes tasks and encodes results: as JSON for `supervise map`, as pickles for an executor."""

import importlib
import json
import pickle
import sys
import traceback

from . import protocol
from .large import drop


class Json:
    """Tasks are JSON values: arguments for one function, which the pool names."""

    def __init__(self, orders):
        for module in orders["imports"]:
            importlib.import_module(module)
        self.function = find(orders["function"])
        self.call = orders["call"]
        self.decode = json.JSONDecoder().decode
        self.encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
        name = orders["initializer"]
        self.initializer = find(name) if name else None

    def initialize(self, _setup):
        if self.initializer is not None:
            self.initializer()

    def run(self, body):
        text = str(body, "utf-8")
        drop(body)
        value = self.decode(text)
        del text
        if self.call == "one":
            return self.function(value)
        if self.call == "args":
            return self.function(*value)
        return self.function(**value)

    def encode(self, value):
        return self.encoder.encode(value).encode()

    def describe(self, error):
        return describe(error)


class Pickle:
    """Tasks are pickles of a callable, its arguments and its keyword arguments."""

    def __init__(self, orders):
        # This must be the module of the client, from the client's `sys.path`, because its pickles refer to it by name.
        from supervise import _pickles

        self.encode = _pickles.dumps
        self.load = _pickles.load_task
        for module in orders["imports"]:
            importlib.import_module(module)

    def initialize(self, setup):
        initializer, arguments = pickle.loads(setup)
        drop(setup)
        if initializer is not None:
            initializer(*arguments)

    def run(self, body):
        function, arguments, keywords = self.load(body)
        drop(body)
        return function(*arguments, **keywords)

    def describe(self, error):
        text = describe(error)
        try:
            pickled = self.encode(error)
            # Some exceptions can be pickled but not loaded, and the client would fail to load them.
            pickle.loads(pickled)
        except Exception:
            pickled = b""
        return protocol.with_length(text, pickled)


def roots(orders):
    """The modules that a pool imports, in order. Modules that only the codec needs are not included."""
    names = [orders["function"], orders["initializer"]]
    return orders["imports"] + [name.partition(":")[0] for name in names if name]


def load(orders):
    """Imports all modules of the pool, and finds its functions."""
    return Json(orders) if orders["codec"] == "json" else Pickle(orders)


def find(name):
    """The object of `MODULE:NAME[.NAME]...`."""
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError("%s is not callable: it is a %s" % (name, type(found).__name__))
    return found


def describe(error):
    """An exception as JSON. The exception's own methods may fail in any way."""
    try:
        message = str(error)
    except Exception as worse:
        message = "<str() of the exception raised %s>" % type(worse).__name__
    try:
        lines = traceback.format_exception(type(error), error, own_frames_cut(error))
        text = "".join(lines)
    except Exception:
        text = None
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__"):
        name = kind.__module__ + "." + name
    words = {"type": name, "message": message, "traceback": text}
    try:
        return in_json(words)
    except MemoryError:
        words.update(message="<not enough memory for the message>", traceback=None)
        return in_json(words)


def in_json(words):
    return json.dumps(words, separators=(",", ":")).encode("utf-8", "replace")


def own_frames_cut(error):
    """The traceback from the first frame of the user's code on."""
    trace = error.__traceback__
    here = sys.modules[__name__].__name__.rpartition(".")[0]
    while trace is not None and trace.tb_next is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        if not name.startswith((here + ".", "importlib")):
            break
        trace = trace.tb_next
    return trace
