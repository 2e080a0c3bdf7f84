"""`Executor`: a `concurrent.futures.Executor` with memory limits for its workers."""
import concurrent.futures
import itertools
import json
import os
import sys
import threading
import weakref
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from typing import Any, Callable, Dict, Iterable, Iterator, List, Literal, Optional, Sequence, Tuple, Union

from . import _binary, _life, _pickles, _sizes
from ._client import Client, abandoning
from ._errors import MemoryCapExceeded, TaskTimeout, WorkerDied

__all__ = ["BrokenProcessPool", "Executor", "MemoryCapExceeded", "TaskTimeout", "WorkerDied"]

Size = Union[int, str]


class Executor(concurrent.futures.Executor):
    """Runs calls in worker processes, as `ProcessPoolExecutor` does, and limits their memory.

    A worker over its `ceiling` is replaced between two tasks. A worker that reaches its `cap` is stopped. Its task is
    tried again `oom_retries` times while no other task runs, and then raises `MemoryCapExceeded`. `budget` limits all
    workers together. If a worker dies, only its own task is lost (`WorkerDied`), and the pool starts a new worker.
    Sizes are bytes or strings such as "300M", "1.5G" and "80%", and at least 1M.

    With `start="template"` the modules of `preload` are imported once, and workers are forked from that process. With
    "fresh" each worker imports them. "auto" forks unless the imports hold something that forks cannot share, such as
    connections or threads. `task_timeout` is in seconds. `initializer(*initargs)` runs once in each worker; if it
    fails, the pool is broken.
    """

    def __init__(
        self,
        max_workers: Optional[int] = None,
        *,
        max_tasks_per_child: Optional[int] = None,
        ceiling: Optional[Size] = None,
        cap: Optional[Size] = None,
        budget: Optional[Size] = None,
        task_timeout: Union[None, float, timedelta] = None,
        initializer: Optional[Callable[..., object]] = None,
        initargs: Tuple[Any, ...] = (),
        preload: Sequence[str] = (),
        start: str = "auto",
        oom_retries: int = 1,
    ) -> None:
        if max_workers is None:
            max_workers = len(os.sched_getaffinity(0)) or 1
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if start not in ("auto", "template", "fresh"):
            raise ValueError("start must be 'auto', 'template' or 'fresh', not {!r}".format(start))
        if isinstance(preload, str):
            raise TypeError("preload must be a sequence of module names, not a string")
        self._max_workers = max_workers
        self._options: List[str] = ["--workers", str(max_workers), "--start", start]
        self._options += ["--oom-retries", str(int(oom_retries))]
        for name, value in (
            ("--max-tasks", max_tasks_per_child),
            ("--ceiling", _sizes.limit("ceiling", ceiling)),
            ("--cap", _sizes.limit("cap", cap)),
            ("--budget", _sizes.limit("budget", budget)),
            ("--task-timeout", _duration(task_timeout)),
        ):
            if value is not None:
                self._options += [name, str(value)]
        self._preload = list(preload)
        self._setup = _pickles.dumps_setup(initializer, tuple(initargs))
        self._forks = _life.forks
        self._lock = threading.Lock()
        self._shut = False
        self._interrupted = False
        self._client: Optional[Client] = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Returns a future for `fn(*args, **kwargs)`, which a worker runs."""
        client = self._client
        if client is None or self._shut or _life.exiting or self._forks != _life.forks:
            client = self._start(fn)
        return client.submit(fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: Optional[float] = None,
        chunksize: int = 1,
        **more: Any,
    ) -> Iterator[Any]:
        """Calls `fn` with each tuple of the iterables. Results are in order. A task makes `chunksize` calls."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, **more)
        chunks = _chunks(zip(*iterables), chunksize)
        return _flat(super().map(_pickles.Spread(fn), chunks, timeout=timeout, **more))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accepts no more tasks and finishes those that were submitted; `cancel_futures` cancels those not started.

        Ctrl-C during the wait kills the pool.
        """
        if self._forks != _life.forks:
            return
        with self._lock:
            self._shut = True
            client = self._client
        if client is None:
            return
        client.close(cancel_futures, self._interrupted)
        if wait:
            try:
                client.join()
            except KeyboardInterrupt:
                client.kill()
                raise

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> Literal[False]:
        # After Ctrl-C and SystemExit no more tasks are started.
        cancel = kind is not None and not issubclass(kind, Exception)
        self._interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.shutdown(wait=True, cancel_futures=cancel)
        return False

    @property
    def _broken(self) -> Optional[str]:
        return self._client.broken if self._client is not None else None

    def _start(self, fn: Callable[..., Any]) -> Client:
        """Returns the client, and starts it if necessary. Raises the reason if it cannot run."""
        if self._forks != _life.forks:
            raise RuntimeError("this executor belongs to the parent of this process; create one after the fork")
        with self._lock:
            if self._client is not None and self._client.broken is not None:
                self._client.submit(fn, (), {})  # Raises, with the reason.
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if _life.exiting:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            if self._client is None:
                client = Client(*self._command(fn), self._setup, self._max_workers + 1)
                client.owner = weakref.ref(self, abandoning(client))
                self._client = client
            return self._client

    def _command(self, fn: Callable[..., Any]) -> Tuple[List[str], Dict[str, str]]:
        preload = list(self._preload)
        if _pickles.by_value(fn) or b"cloudpickle" in self._setup:
            preload.append("cloudpickle")  # Otherwise each worker would import it to load its first task.
        imports = itertools.chain.from_iterable(("--import", name) for name in preload)
        environment = dict(os.environ)
        environment["SUPERVISE_SYS_PATH"] = json.dumps([os.fspath(path) for path in sys.path])
        command = [_binary.find(), "pool", "--python", sys.executable, *self._options, *imports]
        return command, environment


def _duration(value: Union[None, float, timedelta]) -> Optional[str]:
    if value is None:
        return None
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not seconds > 0:
        raise ValueError("task_timeout must be greater than 0")
    return "{}ms".format(max(1, round(seconds * 1000)))


def _chunks(items: Iterator[Tuple[Any, ...]], size: int) -> Iterator[List[Tuple[Any, ...]]]:
    while True:
        chunk = list(itertools.islice(items, size))
        if not chunk:
            return
        yield chunk


def _flat(chunks: Iterator[List[Any]]) -> Iterator[Any]:
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()  # Removed from the chunk, so that the caller holds the only reference.
