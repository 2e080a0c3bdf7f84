"""Pickles tasks and results: by reference if the other process can import them, otherwise by value.

A worker cannot import a lambda, nor anything that is defined in `__main__` (a script, a notebook, `python -c`).
cloudpickle pickles these by value. The pickle of a function is cached as long as nothing that the function uses has
changed. Workers import this module to load tasks, so it imports as little as possible.
"""
import io
import pickle
import sys
import types
from typing import Any, Callable, Dict, List, Optional, Set, Tuple, Union

from ._pool.protocol import LENGTH

_PROTOCOL = 5
_MAIN = b"__main__"
_MANAGERS = "multiprocessing.managers"
_UNPICKLABLE = (pickle.PicklingError, AttributeError, TypeError)
_NOTHING = object()
#: Stands at the end of a task whose function is in one pickle with the arguments.
_WHOLE = LENGTH.pack(0)
_PLAIN = (
    *(int, float, complex, bool, str, bytes, type(None), type(Ellipsis)),
    *(types.BuiltinFunctionType, types.ModuleType),
)


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
    """Pickles a value so that a process with another `__main__` can load it."""
    try:
        body = pickle.dumps(value, _PROTOCOL)
    except _UNPICKLABLE as error:
        return _dumps_by_value(value, error)
    return _dumps_by_value(value, None) if _MAIN in body else body


def dumps_setup(initializer: Optional[Callable[..., object]], args: Tuple[Any, ...]) -> bytes:
    """Pickles the initializer that each worker calls when it starts."""
    return _with_key(dumps((initializer, args)))


def dumps_task(function: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[bytes, bytes]:
    """The body of a task in two parts: the pickle of its arguments; the pickle of its function and its length.

    Most tasks call the same function as the task before them, and the lookup of a function by name takes longer than
    everything else in client and worker. A function that cannot be imported is pickled with the arguments; the length
    is then 0.
    """
    newest = _newest
    found: Optional[_Found] = newest
    if newest.function is not function or newest.scope.get(newest.name) is not function:
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
    """Loads the function, arguments and keyword arguments of a task from `dumps_task`."""
    newest = _newest
    function = newest.function
    if not body.endswith(newest.tail) or not newest.is_current(function):
        size = LENGTH.unpack_from(body, len(body) - LENGTH.size)[0]
        if size == 0:
            return pickle.loads(body)
        tail = bytes(body[-size - LENGTH.size :])
        function = pickle.loads(tail)
        _found(function, tail)
    # `loads` stops at the end of the first pickle and ignores the tail.
    args, kwargs = pickle.loads(body)
    return function, args, kwargs


class _Found:
    """An imported function, with what is needed to check that its name still refers to it."""

    __slots__ = ("function", "tail", "scope", "name")

    def __init__(self, function: Any, tail: bytes, scope: Dict[str, Any], name: str) -> None:
        self.function = function
        self.tail = tail
        self.scope = scope
        self.name = name

    def is_current(self, function: Any) -> bool:
        return self.function is function and self.scope.get(self.name) is function


#: The function of the last task, in the client or in a worker.
_newest = _Found(_NOTHING, b"", {}, "")


def _found(function: Any, tail: bytes) -> Optional[_Found]:
    """Remembers a function as the one of the last task, if it is possible to check what its name refers to."""
    global _newest
    # In a worker, the name may refer to another object.
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    name = getattr(function, "__qualname__", "")
    found = _Found(function, tail, getattr(module, "__dict__", {}), name)
    if not found.is_current(function):
        return None
    _newest = found
    return found


def _find(function: Any) -> Optional[_Found]:
    if type(function) is not types.FunctionType or not _imports(function):
        return None
    try:
        body = pickle.dumps(function, _PROTOCOL)
    except _UNPICKLABLE:
        return None  # Pickling the whole task will raise the reason.
    return None if _MAIN in body else _found(function, body + LENGTH.pack(len(body)))


def _with_key(body: bytes) -> bytes:
    """Adds the key of this process, if the pickle has proxies of a manager: they need it to connect to the manager."""
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
    # If `__main__` is named more often than in the cached pickle, the arguments refer to it, too.
    return body if body.count(_MAIN) == kept.mains else _dumps_by_value((function, args, kwargs), None)


# Loading.

#: The globals, in this process, of all functions of the client's `__main__`.
_globals: Dict[str, Any] = {}
#: The values in `_globals` that came from the client. Code that ran here has set a name with another value.
_sent: Dict[str, Any] = {}
_loaded: Dict[bytes, Any] = {}


def main_globals() -> Dict[str, Any]:
    """The globals of all functions of the client's `__main__`."""
    return _globals


def load(blob: bytes) -> Any:
    """Loads a pickle by value. Keeps globals that code in this process has set (an initializer's `global model`)."""
    own = {name: value for name, value in _globals.items() if _sent.get(name, _NOTHING) is not value}
    value = pickle.loads(blob)
    _globals.update(own)
    for name, bound in _globals.items():
        if name not in own:
            _sent[name] = bound
    return value


def load_keyed(key: bytes, body: bytes) -> Any:
    """Loads a pickle with proxies. From now on this process uses the key of their managers."""
    from multiprocessing import process

    process.current_process().authkey = key
    return pickle.loads(body)


def load_kept(blob: bytes) -> Any:
    """Loads a function that many tasks call, and caches it."""
    function = _loaded.get(blob, _NOTHING)
    if function is _NOTHING:
        function = load(blob)
        if len(_loaded) >= 256:
            _loaded.clear()
        _loaded[blob] = function
    return function


# Pickling.


class _Blob:
    """Takes the place, in a pickle, of an object that was pickled by value."""

    def __init__(self, blob: bytes, loader: Callable[[bytes], Any] = load) -> None:
        self.blob = blob
        self.mains = blob.count(_MAIN)
        self.loader = loader
        self.uses: Optional[_Uses] = None

    def __call__(self) -> None:
        """Never called. It makes this object callable, as a stand-in for a function must be."""

    def __reduce__(self) -> Tuple[Any, ...]:
        return self.loader, (self.blob,)


class _Keyed:
    """Wraps a pickle that has proxies of managers, with the key for these managers."""

    def __init__(self, key: bytes, body: bytes) -> None:
        self.key = key
        self.body = body

    def __reduce__(self) -> Tuple[Any, ...]:
        return load_keyed, (self.key, self.body)


class _MainGlobals:
    """Takes the place, in a pickle, of the globals of `__main__`."""

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
    # The first error is the better explanation.
    raise failed


#: Cached functions that were pickled by value. A function's values may refer back to it, so a weak dictionary would
#: never drop one.
_keeping: Dict[Any, _Blob] = {}


def _kept(function: Any) -> Optional[_Blob]:
    """The cached pickle by value of a function that cannot be imported; None for everything else."""
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
        return None  # Pickling the whole task will raise the reason.
    kept.uses = uses
    if len(_keeping) >= 64:
        _keeping.clear()
    _keeping[function] = kept
    return kept


def by_value(function: Any) -> bool:
    """Whether this is a function that another process cannot import."""
    return type(function) is types.FunctionType and not _imports(function)


def _imports(value: Any) -> bool:
    return value.__module__ != "__main__" and "<" not in value.__qualname__


class _Uses:
    """All values that the pickle of a function contains beside its code, to check whether they have changed."""

    def __init__(self) -> None:
        self.functions: List[Tuple[Any, Any, Any, Any]] = []
        self.names: List[Tuple[Dict[str, Any], str, Any]] = []
        self.cells: List[Tuple[Any, Any]] = []
        self.seen: Set[int] = set()

    def add(self, function: Any) -> bool:
        """Records what a function uses. False if a change of that could not be noticed."""
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
        """Whether a change of this value replaces the object, so that a comparison of identity notices it."""
        if value is _NOTHING or type(value) in _PLAIN:
            return True
        if type(value) in (tuple, frozenset):
            return all(self.fixed(item) for item in value)
        if type(value) is types.FunctionType:
            return _imports(value) or self.add(value)
        return isinstance(value, type) and _imports(value)

    def unchanged(self) -> bool:
        """Whether every name still refers to the same object."""
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
