"""Reads objects of the app without running code of the app.

So no repr, no getattr, no isinstance (the __class__ of a proxy is a property) and no len() of an unknown type. Types
are read through the slots of `type` itself, and containers through the C methods of their base class.
"""
import gc
import sys
from _weakref import ref
from collections import deque

from . import heap

_MODULE = type.__dict__["__module__"].__get__
_QUALNAME = type.__dict__["__qualname__"].__get__
_ITEMSIZE = type.__dict__["__itemsize__"].__get__
_BASICSIZE = type.__dict__["__basicsize__"].__get__
_MRO = type.__dict__["__mro__"].__get__
class_dict = type.__dict__["__dict__"].__get__
METHOD = type(list.append)
MEMBER = type(type(lambda: 0).__dict__["__closure__"])
GETSET = type(type(lambda: 0).__dict__["__code__"])
MODULE_TYPE = heap.MODULE
module_dict = heap.namespace
getsizeof = sys.getsizeof


def mro(kind):
    """The type and its ancestors; nothing for a type that is not ready yet."""
    return _MRO(kind) or ()


def type_name(kind):
    module, name = _MODULE(kind), _QUALNAME(kind)
    if type(module) is not str or module == "builtins":
        return name
    return "%s.%s" % (module, name)


def module_of(kind):
    module = _MODULE(kind)
    return module if type(module) is str else None


def base_of(kind):
    """dict, list, set or deque if a type is one of these or inherits from one, else None."""
    for base in mro(kind):
        if base is dict or base is list or base is set or base is deque:
            return base
    return None


def inherits(kind, module, name):
    """Whether a type has an ancestor of this name. The agent does not have to import the module for this check."""
    for base in mro(kind):
        if _QUALNAME(base) == name and _MODULE(base) == module:
            return True
    return False


# Modules of C types whose __sizeof__ is safe for an object that C code is still building.
SIZED = frozenset(("builtins", "collections", "array", "numpy", "mmap", "_io", "decimal", "_elementtree", "_struct"))


def is_sized(kind):
    """Whether __sizeof__ is that of a C type for which it is safe as soon as the object exists."""
    for base in mro(kind):
        found = class_dict(base).get("__sizeof__")
        if found is not None:
            # __sizeof__ of a Struct that is not initialised yet causes a SIGSEGV, because its array of codes is NULL.
            return type(found) is METHOD and (module_of(base) in SIZED and _QUALNAME(base) != "Struct")
    return False


def is_small(kind):
    """Whether all objects of a type have the same size, and that is small enough for pymalloc."""
    if _ITEMSIZE(kind) != 0 or _BASICSIZE(kind) > 400:
        return False
    for base in mro(kind):
        if "__sizeof__" in class_dict(base):
            return base is object
    return False


def size(thing):
    try:
        kind = type(thing)
        if kind is str or kind is bytes or kind is dict or kind is list or is_sized(kind):
            total = getsizeof(thing)
            if module_of(kind) == "mmap" and _QUALNAME(kind) == "mmap":
                total += kind.__len__(thing)
            under = array_under(thing)
            return total + size(under) if under is not None else total
        return object.__sizeof__(thing) + 16
    except Exception:
        return 64


def array_under(thing):
    """The array of which a numpy array is a view, or None."""
    kind = type(thing)
    if _QUALNAME(kind) != "ndarray" or module_of(kind) != "numpy":
        return None
    try:
        return class_dict(kind)["base"].__get__(thing)
    except Exception:
        return None


def attributes(thing):
    """The instance's attributes by name, from its __dict__ (unless a class overrides it) and its slots."""
    found = []
    kind = type(thing)
    overridden = seen = False
    for base in mro(kind):
        names = class_dict(base)
        descriptor = names.get("__dict__")
        if descriptor is not None and not seen:
            seen = True
            overridden = type(descriptor) is not GETSET
        if base is object or module_of(base) == "builtins":
            continue
        for name, value in list(names.items()):
            if type(value) is MEMBER:
                try:
                    found.append((name, MEMBER.__get__(value, thing, kind)))
                except Exception:
                    pass
    if seen and not overridden:
        try:
            own = object.__getattribute__(thing, "__dict__")
            if type(own) is dict:
                found.extend(list(own.items()))
        except Exception:
            pass
    return found


def modules():
    """{id of a module's namespace: (its name, the namespace)}, in the order of import."""
    found = {}
    for name, module in list(sys.modules.items()):
        if type(name) is not str or not issubclass(type(module), MODULE_TYPE):
            continue
        try:
            names = module_dict(module)
        except Exception:
            continue
        if type(names) is dict and not name.startswith(("_supervise_agent", "sitecustomize")):
            found.setdefault(id(names), (name, names))
    return found


def locals_of(frame):
    """The variables of a frame. Before 3.13, `f_locals` makes a copy that the frame keeps, and the copy keeps all values
    alive. So the copy is emptied again. If the app may use the same dictionary, or a tracer will copy it back into the
    variables, the frame is not read."""
    if COPIED and not is_copy_unused(frame):
        return []
    try:
        names = frame.f_locals
        values = list(names.items())
        if type(names) is dict and frame.f_code.co_flags & 3 == 3 and sys.getrefcount(names) <= 3:
            names.clear()
        return values
    except Exception:
        return []


COPIED = sys.version_info < (3, 13)
# Code that names one of these may keep the dictionary of its variables.
ASKS = frozenset(("locals", "vars", "dir", "eval", "exec", "_getframe", "currentframe"))
# The file of the agent's tracer, and whether a thread executes it.
LINES = __file__.rpartition("/")[0] + "/lines.py"
followed = False


def note_tracer():
    """Notes whether a thread is in a step of the agent's tracer. Call this when no new step can begin: steps that have
    begun are found on the stacks of their threads."""
    global followed
    followed = False
    for frame in sys._current_frames().values():
        while frame is not None:
            followed = followed or frame.f_code.co_filename == LINES
            frame = frame.f_back


def is_copy_unused(frame):
    """Whether no other code uses the copy of a frame's variables. After each step of a tracer written in Python, the
    interpreter copies the variables back: from a copy that the agent has emptied, all variables would be lost."""
    threading = sys.modules.get("threading")
    traced = followed or frame.f_trace is not None or sys.gettrace() is not None
    traced = traced or getattr(threading, "_trace_hook", None) is not None
    return not traced and ASKS.isdisjoint(frame.f_code.co_names)


def newest(thing, base, count):
    """Up to `count` pairs (key, value) of a container, the newest first if it has an order."""
    if base is dict:
        # This uses the iterator of dict itself: a subclass may have its own, and a look-up would run the app's __eq__.
        try:
            found = []
            for pair in reversed(dict.items(thing)):
                found.append(pair)
                if len(found) == count:
                    break
            return found
        except Exception:
            return []
    try:
        if base is list:
            return [(None, item) for item in heap.newest(thing, count)]
        if base is deque:
            length = base.__len__(thing)
            indexes = range(length - 1, max(-1, length - 1 - count), -1)
            return [(None, base.__getitem__(thing, index)) for index in indexes]
        found = []
        for item in set.__iter__(thing):
            found.append((None, item))
            if len(found) == count:
                break
        return found
    except Exception:
        return []


NEVER = frozenset(("module", "type", "function", "code", "frame", "builtin_function_or_method", "method-wrapper",
                   "wrapper_descriptor", "method_descriptor", "getset_descriptor", "member_descriptor", "ABCMeta"))


FUNCTION = type(lambda: 0)


def is_program_object(thing):
    """Whether an object belongs to the program rather than to its data. weigh() does not follow such objects. A
    function with a closure carries data."""
    kind = type(thing)
    if kind is FUNCTION and thing.__closure__ is not None:
        return False
    return issubclass(kind, type) or (module_of(kind) == "builtins" and _QUALNAME(kind) in NEVER)


def contents(thing):
    """What an object refers to; of a function, only the variables of its closure, and of a weak reference nothing: its
    callback leads to its owner."""
    if issubclass(type(thing), ref):
        return []
    return gc.get_referents(thing.__closure__) if type(thing) is FUNCTION else heap.referents(thing)


def weigh(thing, limit=200):
    """The sizes of an object and of all that it refers to: {id: bytes}, at most `limit` objects. Of a long container,
    some entries are weighed, and their sizes multiplied."""
    weights = {}
    queue = [(thing, 1.0)]
    while queue and limit > 0:
        one, times = queue.pop(0)
        if id(one) in weights:
            continue
        weights[id(one)] = size(one) * times
        limit -= 1
        kind = type(one)
        if kind is str or kind is bytes or kind is int:
            continue
        base = base_of(kind)
        if base is not None:
            length = base.__len__(one)
            if length > 24:
                some = newest(one, base, 8)
                for key, value in some:
                    if key is not None:
                        queue.append((key, times * length / len(some)))
                    if not is_program_object(value):
                        queue.append((value, times * length / len(some)))
                continue
        for next_one in contents(one)[:64]:
            if not is_program_object(next_one) and id(next_one) not in weights:
                queue.append((next_one, times))
    return weights
