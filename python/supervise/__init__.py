"""Keeps Python processes within their memory limits, from outside.

`Executor` is a `concurrent.futures.Executor` whose workers `supervise` watches.
"""
from typing import TYPE_CHECKING, Any, List

__version__ = "0.1.0"
__all__ = ["Executor", "MemoryCapExceeded", "TaskTimeout", "WorkerDied", "__version__"]

if TYPE_CHECKING:
    from ._errors import MemoryCapExceeded, TaskTimeout, WorkerDied
    from .executor import Executor


def __getattr__(name: str) -> Any:
    # Workers import this package too. Only a client needs these modules, so they are loaded on first use.
    found: Any
    if name == "Executor":
        from . import executor

        found = executor.Executor
    elif name in ("MemoryCapExceeded", "TaskTimeout", "WorkerDied"):
        from . import _errors

        found = getattr(_errors, name)
    else:
        raise AttributeError("module {!r} has no attribute {!r}".format(__name__, name))
    globals()[name] = found
    return found


def __dir__() -> List[str]:
    return sorted(set(globals()) | set(__all__))
