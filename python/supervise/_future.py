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

    def __init__(self) -> None:
        # Not that of the base, which makes the condition.
        self._state = _PENDING
        self._result = None
        self._exception = None
        self._waiters: Any = []
        self._done_callbacks: Any = []

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        with _lock:
            made = self._made
            if made is None:
                made = self._made = threading.Condition()
            return made

    def begin(self) -> bool:
        """It is handed over now. False if it was cancelled."""
        with _lock:
            if self._made is None:
                self._state = _RUNNING
                return True
        return self.set_running_or_notify_cancel()

    def finish(self, result: Any) -> None:
        """It has returned."""
        with _lock:
            if self._made is None:
                self._result = result
                self._state = _FINISHED
                return
        self.set_result(result)

    def result(self, timeout: Optional[float] = None) -> Any:
        """What the call returned; raises what it raised."""
        if self._state == _FINISHED and self._exception is None:
            return self._result
        return super().result(timeout)
