"""A future that costs little as long as nobody waits for it."""
import threading
from concurrent.futures import Future
from typing import Any, Optional

_FINISHED = "FINISHED"
_RUNNING = "RUNNING"
_PENDING = "PENDING"
_lock = threading.Lock()


class TaskFuture(Future):  # type: ignore[type-arg]
    """A future whose condition is made when somebody wants it: to wait, to cancel, to add a callback.

    RACE: whoever wants the condition makes it under the lock under which the state changes as long as there
    is none. So either it sees the new state, or the change sees the condition, and notifies.
    """

    _made: Optional[threading.Condition] = None
    _state = _PENDING
    _result = None
    _exception = None

    # Not that of the base, which makes the condition. What goes with that comes with it.
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
        """It is handed over now, and nobody else has it yet."""
        self._state = _RUNNING

    # Called by the thread of the client only, which no signal interrupts: there `with` costs twice as much.

    def begin(self) -> bool:
        """It is handed over now. False if it was cancelled."""
        _lock.acquire()
        try:
            if self._made is None:
                self._state = _RUNNING
                return True
        finally:
            _lock.release()
        return self.set_running_or_notify_cancel()

    def finish(self, result: Any) -> None:
        """It has returned."""
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
        """Cancels a task that the pool has received but not begun, because the pool was told to stop."""
        with self._condition:
            self._state = _PENDING
        if self.cancel():
            self.set_running_or_notify_cancel()

    # Called by any thread.

    def result(self, timeout: Optional[float] = None) -> Any:
        """What the call returned; raises what it raised."""
        if self._state == _FINISHED and self._exception is None:
            return self._result
        return super().result(timeout)

    def cancel(self) -> bool:
        """Whether nothing will become of it; never so once it was handed over."""
        if self._state in (_RUNNING, _FINISHED):
            return False
        return super().cancel()
