"""The exceptions of failed tasks, and how they are made from the pool's answers."""
import json
import pickle
from typing import Any, Dict, Optional, Tuple

from ._pool import protocol

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
    """A task has no result because its worker ended."""

    def __init__(self, message: str = "", cause: str = "", attempts: int = 1, peak: Optional[int] = None) -> None:
        super().__init__(message)
        #: `cap`, `timeout`, `exit:N`, `signal:NAME` or `start-failed`.
        self.cause = cause
        #: The number of attempts to run the task.
        self.attempts = attempts
        #: The peak memory of the worker in bytes, or None if it is not known.
        self.peak = peak

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self), (str(self), self.cause, self.attempts, self.peak)


class MemoryCapExceeded(_Lost, MemoryError):
    """The task needs more memory than the cap of a worker: it reached the cap even when no other task ran."""


class TaskTimeout(_Lost, TimeoutError):
    """The task ran longer than `task_timeout` and was stopped."""


class WorkerDied(_Lost, RuntimeError):
    """The worker exited while it ran the task. Only this task is lost: the pool starts a new worker."""


def of_answer(body: bytes) -> Optional[BaseException]:
    """The exception for a task that has no answer (frame D). None if no worker can start: the pool fails with that."""
    said: Dict[str, Any] = json.loads(body)
    cause = said.get("cause") or ""
    if cause == "start-failed":
        return None
    kind = {"cap": MemoryCapExceeded, "timeout": TaskTimeout}.get(cause, WorkerDied)
    message = said.get("message") or "the worker exited: {}".format(cause)
    return kind(message, cause, said.get("attempts") or 1, said.get("peak"))


def of_exception(body: bytes) -> BaseException:
    """The exception that a task raised in its worker (frames E and U). Its cause is the traceback in the worker."""
    text, pickled = protocol.without_length(body)
    said: Dict[str, Any] = json.loads(text)
    raised = None
    if pickled:
        try:
            raised = pickle.loads(pickled)
        except BaseException:  # A constructor may raise anything. The text of the exception is known in any case.
            pass
    if not isinstance(raised, BaseException):
        raised = RuntimeError("{}: {}".format(said.get("type"), said.get("message")))
    raised.__cause__ = remote(said.get("traceback") or "")
    return raised


def of_start(body: bytes) -> Tuple[str, str]:
    """Why the pool failed (frame X): the message and the traceback."""
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        return "a worker could not start; it sent no reason", ""
    why = ": ".join(part for part in (said.get("type"), said.get("message")) if part)
    return "a worker could not start: {}".format(why), said.get("traceback") or ""


def remote(traceback: str) -> BaseException:
    """Makes an exception of a traceback of another process, for use as the cause of another exception."""
    cause = RemoteTraceback.__new__(RemoteTraceback)
    cause.tb = '\n"""\n{}"""'.format(traceback)
    return cause
