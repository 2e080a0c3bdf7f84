"""Describes how one object holds the next one: an attribute, a key, an item, a variable."""
import sys

from . import introspect, source_locations

FRAME = type(sys._getframe())
CELL = type((lambda x: lambda: x)(1).__closure__[0])
FUNCTION = type(lambda: 0)
METHOD = type((lambda self: None).__get__(1))
# atexit has more functions than this only if one is registered again and again.
AT_EXIT = 20

# Holders that are no names.
THREAD_LOCAL = "thread-local data"
CONTEXT = "context variables of a thread"
CALLBACK = "a callback in C code"
C_CODE = "C code"
VAGUE = frozenset((THREAD_LOCAL, CONTEXT, CALLBACK, C_CODE))


def greenlet_frame(greenlet):
    for base in introspect.mro(type(greenlet)):
        descriptor = introspect.class_dict(base).get("gr_frame")
        if type(descriptor) is introspect.GETSET:
            return descriptor.__get__(greenlet)
    return None


def key_of(names, value):
    for key, found in list(dict.items(names)):
        if found is value and type(key) is str:
            return key
    return "?"


def step(parent, child, above):
    """How `parent` holds `child`."""
    kind = type(parent)
    if introspect.base_of(kind) is dict:
        if dict.__len__(parent) > 200000:
            return "value of %s" % introspect.type_name(kind)
        for key, value in list(dict.items(parent)):
            if value is child:
                if type(key) is not str:
                    return "[...]"
                known = above is not None and type(above) not in (tuple, CELL)
                plain = known and introspect.base_of(type(above)) is None
                return ".%s" % key if plain else "[%s]" % ascii(key[:40])
            if key is child:
                return "key of %s" % introspect.type_name(kind)
        return None
    if kind is CELL or kind is tuple and above is not None and type(above) is FUNCTION:
        return None if kind is CELL else "closure or default of %s()" % above.__qualname__
    if kind is FUNCTION:
        return None
    if introspect.base_of(kind) is not None or kind is tuple:
        return "item of %s" % introspect.type_name(kind)
    if issubclass(kind, type):
        return None
    frame = None
    try:
        frame = parent if kind is FRAME else None
        if kind.__name__ in ("generator", "coroutine", "async_generator"):
            name = {"generator": "gi_frame", "coroutine": "cr_frame"}.get(kind.__name__, "ag_frame")
            frame = introspect.class_dict(kind)[name].__get__(parent)
        if frame is not None:
            for name, value in introspect.locals_of(frame):
                if value is child:
                    return "local '%s' of %s() at %s:%d" % (
                        name, frame.f_code.co_name, frame.f_code.co_filename, frame.f_lineno or frame.f_code.co_firstlineno)
    except Exception:
        pass
    for name, value in introspect.attributes(parent):
        if value is child:
            return ".%s of %s" % (name, title(parent))
    # The attributes themselves are no step.
    return None if type(child) is dict else introspect.type_name(kind)


def is_of_app(kind):
    """Whether a class is of the app, and not of a library. None for types that both use."""
    module = sys.modules.get(introspect.module_of(kind))
    if not issubclass(type(module), introspect.MODULE_TYPE):
        return None
    file = introspect.module_dict(module).get("__file__")
    if type(file) is not str or source_locations.is_standard(file):
        return None
    return source_locations.is_app(file)


def title(thing):
    """The type of an object, or for a logger its name."""
    kind = type(thing)
    if introspect.inherits(kind, "logging", "Logger"):
        name = dict(introspect.attributes(thing)).get("name")
        if type(name) is str:
            return "logger %s" % ascii(name[:60])
    return introspect.type_name(kind)


def is_context(kind):
    return introspect._QUALNAME(kind) == "Context" and introspect.module_of(kind) in ("builtins", "_contextvars")


def variable_of(context, keys):
    """The context variable of which the value is one of the objects with these ids."""
    for variable, value in type(context).items(context):
        if id(value) in keys:
            return "context variable %s" % ascii(type(variable).name.__get__(variable)[:60])
    return None


def outside_python(objects):
    """What keeps the first of the objects on a way, to which no other Python object refers."""
    kind = type(objects[0])
    if kind is METHOD or kind is FUNCTION or introspect.type_name(kind) == "functools.partial":
        atexit = sys.modules.get("atexit")
        if atexit is not None and atexit._ncallbacks() > AT_EXIT:
            return "atexit"
        return CALLBACK
    if is_context(kind):
        return CONTEXT
    if kind is dict and all([type(key) is str for key, _ in introspect.newest(objects[0], dict, 8)]):
        return THREAD_LOCAL
    return C_CODE
