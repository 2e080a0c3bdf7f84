"""The client of one running `supervise pool`: its process, its socket, and the futures of its tasks.

`submit` writes a task to the socket at once if the workers can take it. Other tasks wait here, where they can be
cancelled. One thread reads results and sends the waiting tasks in batches, up to the credit that the pool has given.
No thread blocks in a write: that thread writes later what the socket did not take, and reads results meanwhile.
"""
import collections
import itertools
import pickle
import signal
import subprocess
import threading
import weakref
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Deque, Dict, List, NoReturn, Optional, Tuple

from . import _errors, _life, _pickles
from ._future import TaskFuture
from ._pool import protocol
from ._pool.protocol import LARGEST, ORDER, TASK
from ._wire import Wire

#: A task larger than this is written separately from its header, so that it is not copied.
_LARGE = 64 << 10
#: Maximum bytes of waiting tasks in one write.
_BATCH = 128 << 10
#: The possible statuses of a pool that was told to stop. RACE: the signal may come before the pool handles
#: signals, or when it is already ending by itself.
_STOPPED = (0, -signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM)

_Waiting = Tuple[TaskFuture, Callable[..., Any], Tuple[Any, ...], Dict[str, Any]]


class Client:
    """One running pool."""

    def __init__(self, command: List[str], environment: Dict[str, str], setup: bytes, credit: int) -> None:
        self._lock = threading.Lock()
        self._waiting: Deque[_Waiting] = collections.deque()
        self._running: Dict[int, TaskFuture] = {}
        self._numbers = itertools.count(1)
        self._credit = credit
        #: Maximum tasks that `submit` sends itself: each worker then has one more task to continue with.
        self._at_once = 2 * credit
        #: The number of tasks that were sent and have no answer yet, or are about to be sent.
        self._under_way = 0
        #: The number of these tasks that callers of `submit` are pickling.
        self._packing = 0
        self._closing = False
        #: The pool was told to start no more tasks.
        self._stopped = False
        self._finished = False
        self._ended = False
        #: The executor. When it is collected as garbage, its pool ends.
        self.owner: Optional[weakref.ref[Any]] = None
        #: Why no more tasks can run, and the traceback of that error.
        self.broken: Optional[str] = None
        self._traceback = ""
        self._wire = Wire()
        try:
            self._start(command, environment)
        except BaseException:
            self._wire.release()
            raise
        self._wire.write([ORDER.pack(len(setup), protocol.SETUP, protocol.VERSION), setup])
        self._thread = threading.Thread(target=self._run, name="supervise-executor", daemon=_life.DAEMON)
        try:
            self._thread.start()
        except BaseException:
            self.kill()
            self._wire.release()
            raise
        _life.clients.add(self)

    def _start(self, command: List[str], environment: Dict[str, str]) -> None:
        with self._wire.theirs as theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                [*command[:2], "--fd", str(number), *command[2:]],
                stdin=subprocess.DEVNULL,
                pass_fds=[number],
                env=environment,
                # The pool must not receive Ctrl-C: the client receives it, and shuts the pool down in order.
                start_new_session=True,
            )

    # Called by any thread.

    def submit(self, function: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> TaskFuture:
        """Returns a future for the call. The task is sent at once if the pool can take it."""
        future: TaskFuture = TaskFuture()
        with self._lock:
            if self.broken is not None or self._ended:
                self._refuse()
            if self._waiting or self._under_way >= min(self._credit, self._at_once) or self._wire.out:
                # The tasks that were sent keep the workers busy. Their answers wake the thread, which sends the
                # waiting tasks in batches.
                self._waiting.append((future, function, args, kwargs))
                return future
            self._under_way += 1
            self._packing += 1
        frame = None
        try:
            future.start()
            frame = self._pack(future, function, args, kwargs)
        finally:
            with self._lock:
                self._packing -= 1
                if frame is None:
                    self._under_way -= 1
                elif self._ended:
                    self._refuse()
                else:
                    self._wire.write(frame if len(frame[1]) > _LARGE else [b"".join(frame)])
                if self._closing or (frame is None and self._waiting):
                    self._wire.wake()
        return future

    def close(self, cancel: bool, interrupted: bool = False) -> None:
        """Accepts no more tasks. The pool finishes its tasks (with `cancel`, only those that have started) and exits.

        If the user has `interrupted` the program, the pool says how many tasks it is still finishing.
        """
        dropped: List[_Waiting] = []
        with self._lock:
            if cancel:
                dropped.extend(self._waiting)
                self._waiting.clear()
                # Only one signal: a second one would stop the tasks that have started.
                if self._under_way and not self._stopped and not self._ended:
                    # `_end` cancels the tasks that the pool has not started.
                    self._stopped = True
                    self._process.send_signal(signal.SIGINT if interrupted else signal.SIGTERM)
            self._closing = True
            self._wire.wake()
        for item in dropped:
            if item[0].cancel():
                item[0].set_running_or_notify_cancel()

    def abandon(self) -> None:
        """Closes the client without taking a lock. Called by the garbage collector, which may interrupt any code."""
        self._closing = True
        self._wire.wake()

    def join(self) -> None:
        """Waits until the pool has exited."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def kill(self) -> None:
        """Stops the pool and its tasks at once."""
        self._stopped = False
        self._wire.shut()

    def forked(self) -> None:
        """Closes the sockets in a fork of the client, so that the pool still notices when the client itself exits."""
        self._process.returncode = 0
        self._wire.release()

    def _refuse(self) -> NoReturn:
        raise BrokenProcessPool(self.broken or "the pool has exited") from self._why()

    def _why(self) -> Optional[BaseException]:
        return _errors.remote(self._traceback) if self._traceback else None

    def _pack(
        self, future: TaskFuture, function: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]
    ) -> Optional[List[bytes]]:
        """The frame of a task that is sent now. None if it cannot be pickled: its future has the error."""
        try:
            body, tail = _pickles.dumps_task(function, args, kwargs)
            size = len(body) + len(tail)
            if size > LARGEST:
                raise ValueError("a task of {} bytes is too large".format(size))
        except Exception as error:
            future.set_exception(error)
            return None
        except BaseException as error:
            future.set_exception(error)
            raise
        number = next(self._numbers)
        self._running[number] = future
        header = ORDER.pack(size, TASK, number)
        return [header, body, tail]

    # The thread.

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self.broken = self.broken or "the client of the pool failed: {!r}".format(error)
            self.kill()
            raise
        finally:
            self._end()

    def _serve(self) -> None:
        while True:
            readable = self._wire.wait()
            if readable:
                answered = self._wire.receive(self._answer, self._take)
                if answered is None:
                    return
                if answered:
                    with self._lock:
                        self._under_way -= answered
            if self._wire.out:
                with self._lock:
                    self._wire.flush()
            if self._waiting:
                self._hand_over()
            if self._closing and not self._finished:
                self._finish()

    def _take(self, kind: int, number: int, body: memoryview) -> int:
        """Handles a frame that is not a result. Returns how many tasks it answers."""
        if kind in (protocol.RAISED, protocol.UNSERIALIZABLE, protocol.LOST):
            return self._fail(number, kind, bytes(body))
        if kind == protocol.CREDIT:
            self._credit = number
        elif kind == protocol.BROKEN:
            self.broken, self._traceback = _errors.of_start(bytes(body))
            _life.LOG.critical("%s\n%s", self.broken, self._traceback)
        return 0

    # A waiting thread must not keep a result or an error alive. So each is handled in a function of its own, whose
    # variables end with it.

    def _answer(self, number: int, body: memoryview) -> int:
        future = self._running.pop(number, None)
        if future is None:
            return 0
        try:
            value = pickle.loads(body)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.finish(value)
        return 1

    def _fail(self, number: int, kind: int, body: bytes) -> int:
        error = _errors.of_answer(body) if kind == protocol.LOST else _errors.of_exception(body)
        if error is None:
            return 0  # The pool is about to fail with the reason, and this task with it.
        future = self._running.pop(number, None)
        if future is None:
            return 0
        future.set_exception(error)
        return 1

    def _hand_over(self) -> None:
        """Sends waiting tasks, as many as the credit allows and the socket takes."""
        while not self._wire.out:
            with self._lock:
                count = min(self._credit - self._under_way, len(self._waiting))
                if count <= 0:
                    return
                self._under_way += count
            parts, packed = self._pack_waiting(count)
            with self._lock:
                self._under_way -= count - packed
                if parts:
                    self._wire.write(parts)

    def _pack_waiting(self, count: int) -> Tuple[List[bytes], int]:
        """The frames of up to `count` waiting tasks, fewer if the tasks are large, and the number of frames."""
        small: List[bytes] = []
        size, packed = 0, 0
        waiting = self._waiting
        while count and size < _BATCH:
            count -= 1
            try:
                future, function, args, kwargs = waiting.popleft()
            except IndexError:
                break  # A shutdown has cancelled the others meanwhile.
            if not future.begin():
                continue
            try:
                frame = self._pack(future, function, args, kwargs)
            except BaseException:
                continue  # A `__reduce__` has raised SystemExit, which is now the result of the future.
            if frame is None:
                continue
            packed += 1
            if len(frame[1]) > _LARGE:
                return [b"".join(small), *frame], packed
            size += len(frame[1])
            small += frame
        return [b"".join(small)] if small else [], packed

    def _finish(self) -> None:
        with self._lock:
            if self._waiting or self._wire.out or self._packing:
                return
            self._finished = True
            self._wire.write([ORDER.pack(0, protocol.QUIT, 0)])

    def _end(self) -> None:
        """Called when the pool has exited: tasks without an answer fail."""
        code = self._reap() if self.broken is None else None
        with self._lock:
            stopped = self._stopped and code in _STOPPED
            left = self._running or self._waiting or self._packing or not self._closing
            if self.broken is None and left and not stopped:
                how = "by signal {}".format(-code) if code and code < 0 else "with status {}".format(code)
                self.broken = "`supervise pool` exited {} before its tasks were done".format(how)
            self._ended = True
            lost = list(self._running.values())
            waiting = list(self._waiting)
            self._running.clear()
            self._waiting.clear()
        lost += [item[0] for item in waiting if item[0].set_running_or_notify_cancel()]
        for future in lost:
            if stopped:
                future.drop()
                continue
            error = BrokenProcessPool(self.broken)
            error.__cause__ = self._why()
            future.set_exception(error)
        self._reap()
        self._wire.release()

    def _reap(self) -> int:
        try:
            return self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def abandoning(client: Client) -> Callable[["weakref.ref[Any]"], None]:
    """A callback that stops the pool of an executor when the executor is collected as garbage."""
    return lambda _: client.abandon()
