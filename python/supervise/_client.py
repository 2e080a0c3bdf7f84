"""The client of one running `supervise pool`: its process, its socket, and the futures of what it was given.

`submit` writes tasks straight to the socket if the workers can take them at once. Other tasks wait here, where they
can be cancelled. One thread reads results and sends the waiting tasks, many at a time, as far as the pool's credit
allows. No thread blocks in a write: what the socket does not take is written by that one, which goes on reading.
"""
import collections
import itertools
import pickle
import signal
import struct
import subprocess
import threading
import weakref
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Deque, Dict, List, NoReturn, Optional, Tuple

from . import _errors, _life, _pickles
from ._future import TaskFuture
from ._wire import BROKEN, Wire

_TO_POOL = struct.Struct("<IBQ")
_SETUP, _TASK, _QUIT = (ord(kind) for kind in "ITQ")
_RAISED, _UNSAVED, _LOST, _CREDIT = (ord(kind) for kind in "EUDW")

#: A task of more is written beside its header, so that it is not copied.
_LARGE = 64 << 10
#: So many bytes of waiting tasks are written at once.
_BATCH = 128 << 10
_LARGEST = (1 << 32) - 1
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
        #: So many at most are handed over by `submit` itself: each worker has one more to go on with.
        self._at_once = 2 * credit
        #: Handed over, or about to be.
        self._under_way = 0
        #: Of these, how many a caller of `submit` pickles just now.
        self._packing = 0
        self._closing = False
        #: The pool was told to begin no other task.
        self._stopped = False
        self._finished = False
        self._ended = False
        #: The executor, with what happens when it is garbage.
        self.owner: Optional["weakref.ref[Any]"] = None
        #: Why no task can be done any more, and the traceback of that.
        self.broken: Optional[str] = None
        self._traceback = ""
        self._wire = Wire()
        try:
            self._start(command, environment)
        except BaseException:
            self._wire.release()
            raise
        self._wire.write([_TO_POOL.pack(len(setup), _SETUP, 0), setup])
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
                # Ctrl-C is for the client, which shuts the pool down in order.
                start_new_session=True,
            )

    # Called by any thread.

    def submit(self, function: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> TaskFuture:
        """A future for the call; it is with the pool already, if that takes it."""
        future = TaskFuture()
        with self._lock:
            if self.broken is not None or self._ended:
                self._refuse()
            if self._waiting or self._under_way >= min(self._credit, self._at_once) or self._wire.out:
                # What is under way keeps the workers busy. Its answers wake the thread, which hands over many
                # at a time.
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
                    self._wire.ring()
        return future

    def close(self, cancel: bool, interrupted: bool = False) -> None:
        """Accepts no more tasks. The pool finishes its tasks (with `cancel`, only those that have begun) and ends.

        If the user has `interrupted` the program, the pool says how many tasks it is still finishing.
        """
        dropped: List[_Waiting] = []
        with self._lock:
            if cancel:
                dropped.extend(self._waiting)
                self._waiting.clear()
                # Only one signal: a second one would stop the tasks that have begun.
                if self._under_way and not self._stopped and not self._ended:
                    # Tasks that it does not begin any more are cancelled when it has ended: `_end`.
                    self._stopped = True
                    self._process.send_signal(signal.SIGINT if interrupted else signal.SIGTERM)
            self._closing = True
            self._wire.ring()
        for item in dropped:
            if item[0].cancel():
                item[0].set_running_or_notify_cancel()

    def abandon(self) -> None:
        """Closes, from where no lock may be taken: the executor is garbage."""
        self._closing = True
        self._wire.ring()

    def join(self) -> None:
        """Waits until the pool has ended."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def kill(self) -> None:
        """Ends the pool at once, tasks and all."""
        self._stopped = False
        self._wire.shut()

    def forked(self) -> None:
        """In a child of the client: lets go of the pool, so that it sees when the client itself ends."""
        self._process.returncode = 0
        self._wire.release()

    def _refuse(self) -> NoReturn:
        raise BrokenProcessPool(self.broken or "the pool has ended") from self._why()

    def _why(self) -> Optional[BaseException]:
        return _errors.remote(self._traceback) if self._traceback else None

    def _pack(
        self, future: TaskFuture, function: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]
    ) -> Optional[List[bytes]]:
        """The frame of a task that is handed over now; none if that failed, and its future says why."""
        try:
            body, tail = _pickles.dumps_task(function, args, kwargs)
            size = len(body) + len(tail)
            if size > _LARGEST:
                raise ValueError("a task of {} bytes is too large".format(size))
        except Exception as error:
            future.set_exception(error)
            return None
        except BaseException as error:
            future.set_exception(error)
            raise
        number = next(self._numbers)
        self._running[number] = future
        header = _TO_POOL.pack(size, _TASK, number)
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
        """Takes a frame that is no result: how many tasks it answers."""
        if kind in (_RAISED, _UNSAVED, _LOST):
            return self._fail(number, kind, bytes(body))
        if kind == _CREDIT:
            self._credit = number
        elif kind == BROKEN:
            self.broken, self._traceback = _errors.of_start(bytes(body))
            _life.LOG.critical("%s\n%s", self.broken, self._traceback)
        return 0

    # Nothing in these may stay referred to while the thread waits: hence so many functions.

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
        error = _errors.of_answer(body) if kind == _LOST else _errors.of_exception(body)
        if error is None:
            return 0  # It ends with the pool, which says why.
        future = self._running.pop(number, None)
        if future is None:
            return 0
        future.set_exception(error)
        return 1

    def _hand_over(self) -> None:
        """Hands over what waits, as far as the credit goes and the socket takes it."""
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
        """The frames of so many tasks that wait, or of fewer if these are much to write; and how many they are."""
        small: List[bytes] = []
        size, packed = 0, 0
        waiting = self._waiting
        while count and size < _BATCH:
            count -= 1
            try:
                future, function, args, kwargs = waiting.popleft()
            except IndexError:
                break  # Cancelled by a shutdown meanwhile.
            if not future.begin():
                continue
            try:
                frame = self._pack(future, function, args, kwargs)
            except BaseException:
                continue  # SystemExit of a `__reduce__`: the future has it.
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
            self._wire.write([_TO_POOL.pack(0, _QUIT, 0)])

    def _end(self) -> None:
        """The pool is gone: so are the tasks without an answer."""
        code = self._reap() if self.broken is None else None
        with self._lock:
            stopped = self._stopped and code in _STOPPED
            left = self._running or self._waiting or self._packing or not self._closing
            if self.broken is None and left and not stopped:
                how = "by signal {}".format(-code) if code and code < 0 else "with status {}".format(code)
                self.broken = "the process `supervise pool` ended {} before its work was done".format(how)
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
    """What ends the pool of an executor that nobody refers to."""
    return lambda _: client.abandon()
