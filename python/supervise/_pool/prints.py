"""The output of tasks: the standard output of each worker is a pipe that the supervisor reads.

Everything that writes to descriptor 1 uses this pipe: Python, C libraries, forked children, and programs that the task
starts. The worker buffers only an incomplete line, so only that line is lost when the worker is killed.

At the end of a task's output the worker writes a mark into the pipe: a secret of 16 bytes, which the supervisor
knows, and the number of the task. Output cannot contain it by chance. The worker writes a mark only if the task has
printed: if bytes wait in the pipe, or if the supervisor is reading bytes at this moment.

This check takes 3 % of the time of a task that does nothing. Once a task has printed, the worker checks after each
task. Before that the worker notices output of Python at once. For other output it checks only when it sends results:
after each task that takes a millisecond, and at least once a millisecond. So the first output of C code or of a child
process may be attributed to a later task of the same millisecond.

RACE: output of a child process that outlives its task is attributed to a later task or, after the worker has exited,
to the worker's last task. The pipe does not show which process writes.
"""

import array
import errno
import fcntl
import io
import os
import select
import sys
import termios

from . import protocol
from .protocol import BEGUN, READING


class Seen:
    """Whether this process has printed."""

    __slots__ = ("prints",)


SEEN = Seen()
SEEN.prints = False


class Text(io.TextIOWrapper):
    def write(self, text, _write=io.TextIOWrapper.write, _seen=SEEN):
        _seen.prints = True
        return _write(self, text)


class Buffer(io.BufferedWriter):
    def write(self, data, _write=io.BufferedWriter.write, _seen=SEEN):
        _seen.prints = True
        return _write(self, data)


class Pipe(io.FileIO):
    """Descriptor 1."""

    #: The worker's other descriptor of its pipe.
    kept = None

    def write(self, data, _write=io.FileIO.write):
        while True:
            try:
                written = _write(self, data)
            except OSError as error:
                # This task or an earlier one has closed descriptor 1.
                if error.errno != errno.EBADF or self.kept is None:
                    raise
                os.dup2(self.kept, 1)
                continue
            if written is not None:
                return written
            # A program that the task started has set O_NONBLOCK. All processes with this pipe share that flag.
            until_writable(self.fileno())

    def seekable(self):
        # Descriptor 1 of the template may be a file, and FileIO would remember in workers that it is seekable.
        return False


def until_writable(fd):
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()


def open_stdout():
    """Sets the `sys.stdout` of the template and its forks to a line-buffered text stream."""
    raw = Pipe(1, "w", closefd=False)
    raw.name = "<stdout>"
    text = Text(Buffer(raw), "utf-8", "replace", line_buffering=True)
    text.mode = "w"
    sys.stdout = sys.__stdout__ = text


class CStdout:
    """The `stdout` of the C library. On a pipe it is block buffered, and its buffer would be lost with the worker."""

    def __init__(self):
        self.flush = lambda: None
        try:
            import ctypes

            libc = ctypes.CDLL(None)
            stream = ctypes.c_void_p.in_dll(libc, "stdout")
            line_buffered = 1  # _IOLBF of glibc and musl
            libc.setvbuf(stream, None, line_buffered, ctypes.c_size_t(0))
            self.flush = lambda: libc.fflush(stream)
        except Exception:
            # No ctypes, or no executable memory for it: C's output comes when its buffer is full.
            pass


class Prints:
    """The worker's side of its pipe."""

    def __init__(self, page, pipe, secret, c_stdout):
        # `pipe` stays open in addition to descriptor 1, because a task may redirect that.
        os.dup2(pipe, 1)
        self.pipe = Pipe.kept = pipe
        self.secret = secret
        self.page = page
        self.c_stdout = c_stdout
        self.waiting = array.array("i", [0])
        SEEN.prints = False
        #: This process is a copy of the worker: a task has called os.fork().
        self.copied = False
        os.register_at_fork(before=self.flush, after_in_child=self.on_copied)

    def on_copied(self):
        self.copied = True

    def flush(self):
        """Writes an incomplete line. It also runs before each fork, so that the line is not printed twice."""
        try:
            sys.stdout.flush()
        except ValueError:
            # The task has closed or detached the stream. The next task gets a new one.
            open_stdout()
        except Exception:
            # The task has set `sys.stdout` to an object of its own, or to None.
            pass
        self.c_stdout.flush()

    def check(self):
        """Notices output that did not come through Python's stream. Called before results are sent."""
        if not SEEN.prints and (sys.stdout is not sys.__stdout__ or self.has_printed()):
            SEEN.prints = True
            self.end(self.page[BEGUN])

    def end(self, number):
        """A task has ended: all output up to here belongs to it."""
        try:
            sys.stdout.flush()
        except Exception:
            self.flush()
        if self.has_printed():
            self.write_mark(number)

    def has_printed(self, _ioctl=fcntl.ioctl, _size=termios.FIONREAD):
        waiting = self.waiting
        try:
            # RACE: the pipe is checked before the word. The supervisor sets the word before it reads the pipe. So if
            # output has left the pipe, either the word is still set, or the supervisor saw after the read that this
            # task had not finished.
            _ioctl(self.pipe, _size, waiting)
        except OSError:
            # The task has closed the pipe.
            return False
        return waiting[0] or self.page[READING]

    def write_mark(self, number):
        mark = protocol.mark(self.secret, number)
        while True:
            try:
                # A mark is shorter than PIPE_BUF: other writers cannot split it (pipe(7)).
                os.write(self.pipe, mark)
                return
            except BlockingIOError:
                until_writable(self.pipe)
