"""What a task prints: standard output is a pipe of the worker's own, which the supervisor reads.

All that writes to descriptor 1 comes through it: Python, C libraries, forked children, programs that the task
starts. Nothing is kept in the worker but a line that is not complete, so that nothing else is lost when it is killed.

Where one task's output ends and the next one's begins is said in the pipe itself, by a mark: a secret of 16 bytes,
which the supervisor knows, and the number of the task that has ended. Output cannot contain it by chance. A mark is
written only if the task has printed: if bytes wait in the pipe, or the supervisor is just reading some.

To look costs as much as 3 % of a task that does nothing. So a worker looks after each task once something was printed
in it. Before that it notices what Python prints at once, and all else when it sends results: after each task that takes
a millisecond, and at least once in a millisecond. Only what C or a child process prints first in a worker may be said
of a later one of the tasks that it has done within that millisecond.

RACE: a child process that outlives its task prints into the output of a later task, or, after the worker's end, of
the last one. The pipe does not tell who writes.
"""

import array
import errno
import fcntl
import io
import os
import select
import struct
import sys
import termios

NUMBER = struct.Struct("<Q")
#: The word of the page that names the task that was begun last.
BEGUN = 0
#: The one that is not 0 while the supervisor reads the pipe.
READING = 4
SECRET_LENGTH = 16


class Seen:
    """Whether something was printed in this process."""

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
                # A task has closed descriptor 1, perhaps an earlier one.
                if error.errno != errno.EBADF or self.kept is None:
                    raise
                os.dup2(self.kept, 1)
                continue
            if written is not None:
                return written
            # A program that the task has started has set O_NONBLOCK, which all share who have the pipe.
            until_writable(self.fileno())

    def seekable(self):
        # The template's may be a file, and what FileIO has found there it remembers.
        return False


def until_writable(fd):
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()


def open_stdout():
    """The `sys.stdout` of the template and of all that is forked from it: an ordinary text stream, line buffered."""
    raw = Pipe(1, "w", closefd=False)
    raw.name = "<stdout>"
    text = Text(Buffer(raw), "utf-8", "replace", line_buffering=True)
    text.mode = "w"
    sys.stdout = sys.__stdout__ = text


class CStdout:
    """C's own standard output, which is block buffered on a pipe and would be lost with the worker."""

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
            # No ctypes, or no memory that may be executed: C's output comes when its buffer is full.
            pass


class Prints:
    """The worker's side of its pipe."""

    def __init__(self, page, pipe, secret, c_stdout):
        # `pipe` stays open beside descriptor 1, which a task may redirect.
        os.dup2(pipe, 1)
        self.pipe = Pipe.kept = pipe
        self.secret = secret
        self.page = page
        self.c_stdout = c_stdout
        self.waiting = array.array("i", [0])
        SEEN.prints = False
        #: This process is a copy of the worker that a task has made by os.fork().
        self.copied = False
        os.register_at_fork(before=self.flush, after_in_child=self.on_copied)

    def on_copied(self):
        self.copied = True

    def flush(self):
        """Passes on a line that is not complete; before a fork, so that it is not printed twice."""
        try:
            sys.stdout.flush()
        except ValueError:
            # The task has closed or detached it. The next task prints as if it had not.
            open_stdout()
        except Exception:
            # It is the task's own object, or nothing at all.
            pass
        self.c_stdout.flush()

    def look(self):
        """Results are sent: was something printed that Python does not know of?"""
        if not SEEN.prints and (sys.stdout is not sys.__stdout__ or self.has_printed()):
            SEEN.prints = True
            self.end(self.page[BEGUN])

    def end(self, number):
        """A task has ended: what was printed by now is its own."""
        try:
            sys.stdout.flush()
        except Exception:
            self.flush()
        if self.has_printed():
            self.write_mark(number)

    def has_printed(self, _ioctl=fcntl.ioctl, _size=termios.FIONREAD):
        waiting = self.waiting
        try:
            # RACE: first the pipe, then the word. What is no more in the pipe was read while the word was set, and
            # it is set still, or the supervisor has seen after its reading that this task had not ended.
            _ioctl(self.pipe, _size, waiting)
        except OSError:
            # The task has closed it.
            return False
        return waiting[0] or self.page[READING]

    def write_mark(self, number):
        mark = self.secret + NUMBER.pack(number)
        while True:
            try:
                # No more than PIPE_BUF: it is in one piece, whoever else writes (pipe(7)).
                os.write(self.pipe, mark)
                return
            except BlockingIOError:
                until_writable(self.pipe)
