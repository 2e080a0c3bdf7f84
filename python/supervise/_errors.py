"""What a future raises when its task did not return, and how the pool's answers become that."""
import json
import pickle
import struct
from typing import Any, Dict, Optional, Tuple

_LENGTH = struct.Struct("<I")

try:
    from concurrent.futures.process import _RemoteTraceback as RemoteTraceback
except ImportError:

    class RemoteTraceback(Exception):  # type: ignore[no-redef]
        """The cause of an exception of a task: its traceback in the worker, as text."""

        def __init__(self, tb: str) -> None:
            super().__init__(tb)
            self.tb = tb

        def __str__(self) -> str:
            return self.tb


class _Lost(Exception):
    """A task that has no result, because of what happened to its worker."""

    def __init__(self, message: str = "", cause: str = "", attempts: int = 1, peak: Optional[int] = None) -> None:
        super().__init__(message)
        #: `cap`, `timeout`, `exit:N`, `signal:NAME` or `start-failed`.
        self.cause = cause
        #: How often the task was tried.
        self.attempts = attempts
        #: The most memory its worker held, in bytes, where it is known.
        self.peak = peak

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self), (str(self), self.cause, self.attempts, self.peak)


class MemoryCapExceeded(_Lost, MemoryError):
    """The task needs more memory than the cap of a worker: it was stopped at it, also when it ran alone."""


class TaskTimeout(_Lost, TimeoutError):
    """The task ran longer than `task_timeout`, and was stopped."""


class WorkerDied(_Lost, RuntimeError):
    """The worker ended in the middle of the task. Only this task is lost: the pool goes on with a new worker."""


def of_answer(body: bytes) -> Optional[BaseException]:
    """The exception that stands for a task without an answer (frame D); none if no worker can start."""
    said: Dict[str, Any] = json.loads(body)
    cause = said.get("cause") or ""
    if cause == "start-failed":
        return None
    kind = {"cap": MemoryCapExceeded, "timeout": TaskTimeout}.get(cause, WorkerDied)
    message = said.get("message") or "the worker ended: {}".format(cause)
    return kind(message, cause, said.get("attempts") or 1, said.get("peak"))


def of_exception(body: bytes) -> BaseException:
    """The exception that a task raised in its worker (frames E and U), the traceback there as its cause."""
    (length,) = _LENGTH.unpack_from(body)
    end = _LENGTH.size + length
    said: Dict[str, Any] = json.loads(body[_LENGTH.size : end])
    raised = None
    if len(body) > end:
        try:
            raised = pickle.loads(body[end:])
        except BaseException:  # Whatever a constructor raises: the text of it is known in any case.
            pass
    if not isinstance(raised, BaseException):
        raised = RuntimeError("{}: {}".format(said.get("type"), said.get("message")))
    raised.__cause__ = remote(said.get("traceback") or "")
    return raised


def of_start(body: bytes) -> Tuple[str, str]:
    """Why the pool cannot go on (frame X): the message, and the traceback."""
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        return "a worker could not start, and did not say why", ""
    why = ": ".join(part for part in (said.get("type"), said.get("message")) if part)
    return "a worker could not start: {}".format(why), said.get("traceback") or ""


def remote(traceback: str) -> BaseException:
    """A traceback of another process, as something that can be the cause of an exception."""
    cause = RemoteTraceback.__new__(RemoteTraceback)
    cause.tb = '\n"""\n{}"""'.format(traceback)
    return cause
