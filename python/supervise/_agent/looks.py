"""Looking at objects of the app without running a line of the app's code.

No repr, no getattr, no isinstance (the __class__ of a proxy is a property), no len() of an unknown type: types are
asked through the slots of `type` itself, and containers through the methods of their base class in C.
"""
import gc
import sys
from collections import deque

from . import heap

_MODULE = type.__dict__["__module__"].__get__
_QUALNAME = type.__dict__["__qualname__"].__get__
_ITEMSIZE = type.__dict__["__itemsize__"].__get__
_BASICSIZE = type.__dict__["__basicsize__"].__get__
mro = type.__dict__["__mro__"].__get__
class_dict = type.__dict__["__dict__"].__get__
METHOD = type(list.append)
MEMBER = type(type(lambda: 0).__dict__["__closure__"])
GETSET = type(type(lambda: 0).__dict__["__code__"])
MODULE_TYPE = type(sys)
module_dict = MODULE_TYPE.__dict__["__dict__"].__get__
getsizeof = sys.getsizeof


def type_name(kind):
    module, name = _MODULE(kind), _QUALNAME(kind)
    if type(module) is not str or module == "builtins":
        return name
    return "%s.%s" % (module, name)


def module_of(kind):
    module = _MODULE(kind)
    return module if type(module) is str else None


def base_of(kind):
    """dict, list, set or deque when a type is one or inherits from one, else None."""
    for base in mro(kind):
        if base is dict or base is list or base is set or base is deque:
            return base
    return None


def inherits(kind, module, name):
    """Whether a class of this name is among the ancestors; the module need not have been imported by us."""
    for base in mro(kind):
        if _QUALNAME(base) == name and _MODULE(base) == module:
            return True
    return False


# Modules of C types whose __sizeof__ is safe on an object that C is still building.
SIZED = frozenset(("builtins", "collections", "array", "numpy", "mmap", "_io", "decimal", "_elementtree", "_struct"))


def is_sized(kind):
    """Whether __sizeof__ is that of a C type for which it is safe from the moment the object exists."""
    for base in mro(kind):
        found = class_dict(base).get("__sizeof__")
        if found is not None:
            # __sizeof__ of a Struct that is not initialised yet ends in a SIGSEGV: it has no codes to add up.
            return type(found) is METHOD and (module_of(base) in SIZED and _QUALNAME(base) != "Struct")
    return False


def is_small(kind):
    """Whether all objects of a type are of one size that pymalloc serves: no part that varies, nothing to add."""
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
    """The array that a numpy array is a view of, or None."""
    kind = type(thing)
    if _QUALNAME(kind) != "ndarray" or module_of(kind) != "numpy":
        return None
    try:
        return class_dict(kind)["base"].__get__(thing)
    except Exception:
        return None


def attributes(thing):
    """The instance's attributes by name, from its __dict__ (unless a class plays tricks with it) and its slots."""
    found = []
    kind = type(thing)
    trick = seen = False
    for base in mro(kind):
        names = class_dict(base)
        door = names.get("__dict__")
        if door is not None and not seen:
            seen = True
            trick = type(door) is not GETSET
        if base is object or module_of(base) == "builtins":
            continue
        for name, value in list(names.items()):
            if type(value) is MEMBER:
                try:
                    found.append((name, MEMBER.__get__(value, thing, kind)))
                except Exception:
                    pass
    if seen and not trick:
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
    """The variables of a frame. Before 3.13 asking makes a copy that the frame keeps, and with it all that is in it:
    the copy is emptied again. If the app may use the same dictionary, or a tracer will copy it back into the variables,
    the frame is not asked."""
    if COPIED and not is_left_alone(frame):
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
# The file of our own tracer, and whether a thread executes it.
LINES = __file__.rpartition("/")[0] + "/lines.py"
followed = False


def note_tracer():
    """Call this when no new step of our tracer can begin: a step that has begun is found on the stack of its thread."""
    global followed
    followed = False
    for frame in sys._current_frames().values():
        while frame is not None:
            followed = followed or frame.f_code.co_filename == LINES
            frame = frame.f_back


def is_left_alone(frame):
    """Whether no other code uses the copy of a frame's variables. After each step of a tracer written in Python the
    interpreter copies them back from there: from a copy that we have emptied, all variables would be lost."""
    threading = sys.modules.get("threading")
    traced = followed or frame.f_trace is not None or sys.gettrace() is not None
    traced = traced or getattr(threading, "_trace_hook", None) is not None
    return not traced and ASKS.isdisjoint(frame.f_code.co_names)


def newest(thing, base, count):
    """Up to `count` pairs (key, value) of a container, the youngest first where it has an order."""
    if base is dict:
        # By the iterator of dict itself: a subclass may bring its own, and a look-up would run the app's __eq__.
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
            return [(None, base.__getitem__(thing, index)) for index in range(length - 1, max(-1, length - 1 - count), -1)]
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


def is_scenery(thing):
    """Objects that belong to the program rather than to its data: a weight never follows them."""
    kind = type(thing)
    return issubclass(kind, type) or (module_of(kind) == "builtins" and _QUALNAME(kind) in NEVER)


def weigh(thing, limit=200):
    """Bytes by id of what hangs on an object, itself included: {id: bytes}. Containers that are longer than the limit
    are weighed by a part of them and multiplied."""
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
                    if not is_scenery(value):
                        queue.append((value, times * length / len(some)))
                continue
        for next_one in gc.get_referents(one)[:64]:
            if not is_scenery(next_one) and id(next_one) not in weights:
                queue.append((next_one, times))
    return weights
