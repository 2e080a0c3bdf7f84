"""A future that is cheap until another thread waits for it."""
import threading
from concurrent.futures import Future
from typing import Any, Optional

_FINISHED = "FINISHED"
_RUNNING = "RUNNING"
_PENDING = "PENDING"
_lock = threading.Lock()


class TaskFuture(Future):  # type: ignore[type-arg]
    """A future that makes its condition variable when it is needed: to wait, to cancel or to add a callback.

    RACE: one lock protects both the making of the condition and, as long as there is none, changes of the state. So
    a waiting thread either sees the new state, or its condition exists before the change and is notified.
    """

    _made: Optional[threading.Condition] = None
    _state = _PENDING
    _result = None
    _exception = None

    # The `__init__` of the base class would make the condition. `_condition` sets the other attributes of it.
    __init__ = object.__init__

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        with _lock:
            made = self._made
            if made is None:
                self._waiters: Any = []
                self._done_callbacks: Any = []
                made = self._made = threading.Condition()
            return made

    def start(self) -> None:
        """The task is being sent. No other thread has this future yet, so it takes no lock."""
        self._state = _RUNNING

    # `begin` and `finish` are called only by the thread of the client. Signals do not interrupt that thread, so they
    # need no `with`, which takes twice as long.

    def begin(self) -> bool:
        """The task is being sent. False if it was cancelled."""
        _lock.acquire()
        try:
            if self._made is None:
                self._state = _RUNNING
                return True
        finally:
            _lock.release()
        return self.set_running_or_notify_cancel()

    def finish(self, result: Any) -> None:
        """Sets the result."""
        _lock.acquire()
        try:
            if self._made is None:
                self._result = result
                self._state = _FINISHED
                return
        finally:
            _lock.release()
        self.set_result(result)

    def drop(self) -> None:
        """Cancels a task that the pool has received but not started, because the pool was told to stop."""
        with self._condition:
            self._state = _PENDING
        if self.cancel():
            self.set_running_or_notify_cancel()

    # Called by any thread.

    def result(self, timeout: Optional[float] = None) -> Any:
        """Returns what the call returned, or raises what it raised."""
        if self._state == _FINISHED and self._exception is None:
            return self._result
        return super().result(timeout)

    def cancel(self) -> bool:
        """Cancels the task unless it was sent to the pool; returns whether it is cancelled."""
        if self._state in (_RUNNING, _FINISHED):
            return False
        return super().cancel()
