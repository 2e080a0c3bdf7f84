"""How tasks and results are pickled: by reference where the other process can import them, else by value.

What is defined in `__main__` (a script, a notebook, `python -c`) cannot be imported by a worker, nor can a
lambda: cloudpickle pickles those by value. The pickle of a function is kept, for as long as nothing
that it uses can have changed. Workers import this module to load, so that it imports next to nothing.
"""
import io
import pickle
import struct
import sys
import types
from typing import Any, Callable, Dict, List, Optional, Set, Tuple, Union

_PROTOCOL = 5
_MAIN = b"__main__"
_MANAGERS = "multiprocessing.managers"
_UNPICKLABLE = (pickle.PicklingError, AttributeError, TypeError)
_NOTHING = object()
_LENGTH = struct.Struct("<I")
#: Behind the pickle of a task whose function does not come by itself.
_WHOLE = _LENGTH.pack(0)
_PLAIN = (int, float, complex, bool, str, bytes, type(None), type(Ellipsis), types.BuiltinFunctionType, types.ModuleType)


class Spread:
    """Calls a function for each of many arguments: a task of `map` with a chunk size."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, chunk: List[Tuple[Any, ...]]) -> List[Any]:
        function = self.function
        return [function(*args) for args in chunk]

    def __reduce__(self) -> Tuple[Any, ...]:
        return Spread, (self.function,)


def dumps(value: Any) -> bytes:
    """A value, in a form that a process without this `__main__` can load."""
    try:
        body = pickle.dumps(value, _PROTOCOL)
    except _UNPICKLABLE as error:
        return _dumps_by_value(value, error)
    return _dumps_by_value(value, None) if _MAIN in body else body


def dumps_setup(initializer: Optional[Callable[..., object]], args: Tuple[Any, ...]) -> bytes:
    """What each worker begins with."""
    return _with_key(dumps((initializer, args)))


def dumps_task(function: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[bytes, bytes]:
    """The body of a task, in two parts: the pickle of its arguments; that of its function, and how long that is.

    Most tasks call what the task before them called, and to find a function by its name takes longer than all
    else here and there. Whatever cannot be imported comes with the arguments, and 0 is behind them.
    """
    found: Optional[_Found] = _newest
    if found.function is not function or found.scope.get(found.name) is not function:
        found = _find(function)
    if found is None:
        return _with_key(_dumps_call(function, args, kwargs)), _WHOLE
    try:
        body = pickle.dumps((args, kwargs), _PROTOCOL)
    except _UNPICKLABLE as error:
        return _with_key(_dumps_by_value((function, args, kwargs), error)), _WHOLE
    if _MAIN in body:
        return _with_key(_dumps_by_value((function, args, kwargs), None)), _WHOLE
    return _with_key(body) if _MANAGERS in sys.modules else body, found.tail


def load_task(body: Union[bytes, bytearray]) -> Any:
    """A function, its arguments, its keywords: what `dumps_task` made of them."""
    newest = _newest
    function = newest.function
    if not body.endswith(newest.tail) or not newest.is_still(function):
        size = _LENGTH.unpack_from(body, len(body) - _LENGTH.size)[0]
        if size == 0:
            return pickle.loads(body)
        tail = bytes(body[-size - _LENGTH.size :])
        function = pickle.loads(tail)
        _found(function, tail)
    # It ends before the tail.
    args, kwargs = pickle.loads(body)
    return function, args, kwargs


class _Found:
    """An imported function, and whether its name still stands for it."""

    __slots__ = ("function", "tail", "scope", "name")

    def __init__(self, function: Any, tail: bytes, scope: Dict[str, Any], name: str) -> None:
        self.function = function
        self.tail = tail
        self.scope = scope
        self.name = name

    def is_still(self, function: Any) -> bool:
        return self.function is function and self.scope.get(self.name) is function


#: The function of the newest task, in the client or in a worker.
_newest = _Found(_NOTHING, b"", {}, "")


def _found(function: Any, tail: bytes) -> Optional[_Found]:
    """Keeps it, if what its name stands for can be looked at."""
    global _newest
    # Where it is loaded anything may have that name.
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    name = getattr(function, "__qualname__", "")
    found = _Found(function, tail, getattr(module, "__dict__", {}), name)
    if not found.is_still(function):
        return None
    _newest = found
    return found


def _find(function: Any) -> Optional[_Found]:
    if type(function) is not types.FunctionType or not _imports(function):
        return None
    try:
        body = pickle.dumps(function, _PROTOCOL)
    except _UNPICKLABLE:
        return None  # The pickle of the whole task says why.
    return None if _MAIN in body else _found(function, body + _LENGTH.pack(len(body)))


def _with_key(body: bytes) -> bytes:
    """With the key that lets the proxies of a manager in it, if it has any, connect to their manager."""
    if _MANAGERS not in sys.modules or _MANAGERS.encode() not in body:
        return body
    from multiprocessing import process

    return pickle.dumps(_Keyed(bytes(process.current_process().authkey), body), _PROTOCOL)


def _dumps_call(function: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bytes:
    chunked = type(function) is Spread
    kept = _kept(function.function if chunked else function)  # type: ignore[attr-defined]
    if kept is None:
        return dumps((function, args, kwargs))
    called = Spread(kept) if chunked else kept
    try:
        body = pickle.dumps((called, args, kwargs), _PROTOCOL)
    except _UNPICKLABLE as error:
        return _dumps_by_value((function, args, kwargs), error)
    # More of `__main__` than what the kept pickle says of it: the arguments are from there too.
    return body if body.count(_MAIN) == kept.mains else _dumps_by_value((function, args, kwargs), None)


# Where the pickle is loaded.

#: What functions of the client's `__main__` see as their globals here, all of them the same.
_globals: Dict[str, Any] = {}
#: What of it came from the client; a name bound to anything else was bound by code that ran here.
_sent: Dict[str, Any] = {}
_loaded: Dict[bytes, Any] = {}


def main_globals() -> Dict[str, Any]:
    """The globals of all functions of the client's `__main__`."""
    return _globals


def load(blob: bytes) -> Any:
    """Loads what was pickled by value. A global that code here has bound (an initializer's `global model`) stays."""
    own = {name: value for name, value in _globals.items() if _sent.get(name, _NOTHING) is not value}
    value = pickle.loads(blob)
    _globals.update(own)
    for name, bound in _globals.items():
        if name not in own:
            _sent[name] = bound
    return value


def load_keyed(key: bytes, body: bytes) -> Any:
    """Loads what has proxies in it: this process is known to their managers from now on."""
    from multiprocessing import process

    process.current_process().authkey = key
    return pickle.loads(body)


def load_kept(blob: bytes) -> Any:
    """Loads a function that many tasks call, once."""
    function = _loaded.get(blob, _NOTHING)
    if function is _NOTHING:
        function = load(blob)
        if len(_loaded) >= 256:
            _loaded.clear()
        _loaded[blob] = function
    return function


# Where it is made.


class _Blob:
    """Stands in a pickle for what was pickled by value."""

    def __init__(self, blob: bytes, loader: Callable[[bytes], Any] = load) -> None:
        self.blob = blob
        self.mains = blob.count(_MAIN)
        self.loader = loader
        self.uses: Optional[_Uses] = None

    def __call__(self) -> None:
        """Never called: it is its function once it is loaded."""

    def __reduce__(self) -> Tuple[Any, ...]:
        return self.loader, (self.blob,)


class _Keyed:
    """Stands in a pickle for one that has proxies of managers in it."""

    def __init__(self, key: bytes, body: bytes) -> None:
        self.key = key
        self.body = body

    def __reduce__(self) -> Tuple[Any, ...]:
        return load_keyed, (self.key, self.body)


class _MainGlobals:
    """Stands in a pickle for the globals of `__main__`."""

    def __reduce__(self) -> Tuple[Any, ...]:
        return main_globals, ()


def _cloud(value: Any) -> bytes:
    try:
        import cloudpickle
    except ImportError:
        raise pickle.PicklingError(
            "{!r} cannot be imported by a worker: move it into a module, or install cloudpickle".format(value)
        ) from None
    file = io.BytesIO()
    pickler = cloudpickle.CloudPickler(file, _PROTOCOL)
    if hasattr(pickler, "globals_ref"):
        pickler.globals_ref[id(sys.modules["__main__"].__dict__)] = _MainGlobals()
    pickler.dump(value)
    return file.getvalue()


def _dumps_by_value(value: Any, failed: Optional[BaseException]) -> bytes:
    try:
        return pickle.dumps(_Blob(_cloud(value)), _PROTOCOL)
    except Exception:
        if failed is None or "__main__" in str(failed):
            raise
    # What says best why it cannot be pickled.
    raise failed


#: The newest functions pickled by value. What one uses may lead back to it, so weak references would not do.
_keeping: Dict[Any, _Blob] = {}


def _kept(function: Any) -> Optional[_Blob]:
    """The pickle by value of a function that cannot be imported; none for everything else."""
    if not by_value(function):
        return None
    kept = _keeping.get(function)
    if kept is not None and kept.uses is not None and kept.uses.unchanged():
        return kept
    uses = _Uses()
    if not uses.add(function):
        return None
    try:
        kept = _Blob(_cloud(function), load_kept)
    except Exception:
        return None  # The pickle of the whole task says why.
    kept.uses = uses
    if len(_keeping) >= 64:
        _keeping.clear()
    _keeping[function] = kept
    return kept


def by_value(function: Any) -> bool:
    """Whether it is a function that no other process can import."""
    return type(function) is types.FunctionType and not _imports(function)


def _imports(value: Any) -> bool:
    return value.__module__ != "__main__" and "<" not in value.__qualname__


class _Uses:
    """All that the pickle of a function holds beside its code, to see whether it is still so."""

    def __init__(self) -> None:
        self.functions: List[Tuple[Any, Any, Any, Any]] = []
        self.names: List[Tuple[Dict[str, Any], str, Any]] = []
        self.cells: List[Tuple[Any, Any]] = []
        self.seen: Set[int] = set()

    def add(self, function: Any) -> bool:
        """Whether all that it uses is fixed, or a name that can be looked at."""
        if id(function) in self.seen:
            return True
        self.seen.add(id(function))
        code = function.__code__
        self.functions.append((function, code, function.__defaults__, function.__kwdefaults__))
        values = list(function.__defaults__ or ()) + list((function.__kwdefaults__ or {}).values())
        for scope, names in ((function.__globals__, _names(code)), (function.__dict__, set(function.__dict__))):
            for name in names:
                value = scope.get(name, _NOTHING)
                self.names.append((scope, name, value))
                values.append(value)
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:
                return False
            self.cells.append((cell, value))
            values.append(value)
        return all(self.fixed(value) for value in values)

    def fixed(self, value: Any) -> bool:
        """Whether it cannot change without another object in its place."""
        if value is _NOTHING or type(value) in _PLAIN:
            return True
        if type(value) in (tuple, frozenset):
            return all(self.fixed(item) for item in value)
        if type(value) is types.FunctionType:
            return _imports(value) or self.add(value)
        return isinstance(value, type) and _imports(value)

    def unchanged(self) -> bool:
        """Whether every name still stands for the same object."""
        for function, code, defaults, keywords in self.functions:
            if function.__code__ is not code or function.__defaults__ is not defaults:
                return False
            if function.__kwdefaults__ is not keywords:
                return False
        for scope, name, value in self.names:
            if scope.get(name, _NOTHING) is not value:
                return False
        try:
            return all(cell.cell_contents is value for cell, value in self.cells)
        except ValueError:
            return False


def _names(code: types.CodeType) -> Set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names
