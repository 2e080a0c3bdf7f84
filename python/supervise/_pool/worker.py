"""A worker: reads tasks from its socket, runs one after the other, and writes their results.

It shares a page of memory with the supervisor. The page outlives the worker. Its words are:

0, 1, 2  the task that it has begun, finished, and received a part of; if the worker dies, they show which of
         the tasks in its socket is to blame
3        written by the supervisor: not 0 if the worker must not begin another task
4        written by the supervisor, see `prints.py`
16 to 19 see `peak.py`
"""

import gc
import mmap
import os
import struct
import sys
import time
import traceback

from . import codec, large, peak
from .prints import SEEN, Prints

TO_US = struct.Struct("<IBQ")
FROM_US = struct.Struct("<IBQII")
TASK, QUIT, SETUP = b"TQI"
HELLO, RESULT, RAISED, UNSERIALIZABLE, FAILED, NOT_BEGUN = b"HKEUFN"

CHUNK = large.CHUNK
# Results are kept back as long as more tasks wait, but no longer than this.
LATEST_NS = 1_000_000
# Tasks shorter than this are not worth a look at the memory.
SHORT_NS = 1_000_000
LONGEST_NS = 0xFFFFFFFF * 1000


class Worker:
    def __init__(self, sock, page, task):
        self.sock = sock
        self.page = page
        self.task = task
        self.prints = None
        self.number = 0
        self.memory = peak.Peak(self.page)
        self.out = bytearray()
        self.flushed = time.monotonic_ns()

    def say(self, kind, body, micros=0):
        self.out += FROM_US.pack(len(body), kind, self.number, micros, self.memory.kib)
        self.out += body

    def say_large(self, kind, body, micros):
        """Sends a frame without a copy of its body."""
        size = len(body)
        if size > large.LONGEST:
            kind = UNSERIALIZABLE
            body = self.task.describe(ValueError("a result of %d bytes is too large" % size))
        self.flush()
        self.prints.look()
        self.sock.sendall(FROM_US.pack(len(body), kind, self.number, micros, self.memory.kib))
        self.sock.sendall(body)
        self.flushed = time.monotonic_ns()

    def flush(self):
        if self.out:
            self.prints.look()
            self.sock.sendall(self.out)
            self.out = bytearray()
        self.flushed = time.monotonic_ns()

    def serve(self):
        """Until there are no more tasks."""
        waiting = bytearray()
        done = 0
        head = TO_US.size
        unpack = TO_US.unpack_from
        while True:
            have = len(waiting)
            while have - done >= head:
                length, kind, number = unpack(waiting, done)
                end = done + head + length
                if end > have:
                    break
                if kind == TASK:
                    body = waiting[done + head : end]
                    done = end
                    self.do(number, body)
                elif kind == QUIT:
                    self.flush()
                    return
                else:
                    done = end
            if done:
                del waiting[:done]
                done = 0
            self.flush()
            if len(waiting) >= head:
                # `waiting` begins with a part of a frame.
                length, kind, number = unpack(waiting, 0)
                if kind == TASK:
                    self.page[2] = number
                    if length > CHUNK:
                        if not self.receive(waiting, number, length):
                            return
                        continue
            more = self.sock.recv(CHUNK)
            if not more:
                return
            waiting += more

    def receive(self, waiting, number, length):
        """Receives a large task into a buffer of its own, and runs it. False at the end of the socket."""
        body = large.body_of(self.sock, waiting, TO_US.size, length)
        if body is None:
            return False
        if isinstance(body, MemoryError):
            self.number = self.page[0] = number
            self.say(RAISED, self.task.describe(body))
            self.page[1] = number
        else:
            self.do(number, body)
        return True

    def do(self, number, body):
        self.number = number
        page = self.page
        if page[3]:
            self.say(NOT_BEGUN, b"")
            return
        clock = time.monotonic_ns
        begun = clock()
        page[0] = number
        kind = RESULT
        prints = self.prints
        try:
            value = self.task.run(body)
        except BaseException as error:
            if isinstance(error, SystemExit) or prints.copied:
                # As outside of a pool: SystemExit ends the process.
                leave(self, error)
            kind, words = RAISED, self.task.describe(error)
            error.__traceback__ = None
        else:
            if prints.copied:
                leave(self, SystemExit(0))
            try:
                words = self.task.encode(value)
            except BaseException as error:
                # If there is no memory for the encoded form, the fault is not in the result.
                kind = RAISED if isinstance(error, MemoryError) else UNSERIALIZABLE
                words = self.task.describe(error)
            value = None
        ended = clock()
        took = ended - begun
        if took > SHORT_NS:
            self.memory.look()
            prints.c_stdout.flush()
        if SEEN.prints:
            prints.end(number)
        micros = took // 1000 if took < LONGEST_NS else 0xFFFFFFFF
        if len(words) > CHUNK:
            self.say_large(kind, words, micros)
            page[1] = number
            return
        page[1] = number
        self.say(kind, words, micros)
        if took > SHORT_NS or ended - self.flushed > LATEST_NS or len(self.out) > CHUNK:
            self.flush()


def main(sock, page, output, orders, task, generators):
    """Runs the worker; the result is its exit status. `output`: its pipe, the secret of its marks, and C's stdout."""
    gc.enable()
    generators.renew()
    words = memoryview(mmap.mmap(page, mmap.PAGESIZE)).cast("Q")
    os.close(page)
    worker = Worker(sock, words, task)
    worker.prints = Prints(words, *output)
    die_first()
    try:
        if task is None:
            worker.task = task = codec.load(orders)
        task.initialize(read_setup(sock) if orders["codec"] == "pickle" else b"")
    except BaseException as error:
        worker.say(FAILED, codec.describe(error))
        return 1 if heard(worker.flush) else 0
    worker.memory.begin()
    worker.say(HELLO, b"")
    if heard(worker.serve):
        finish(worker.prints)
    return 0


def heard(say):
    """False: the supervisor is gone, or wants no more of us."""
    try:
        say()
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def die_first():
    """Where memory runs out the kernel is to end a worker, not the nest or the template (proc(5))."""
    try:
        # Not open(): in a new fork a text file takes a quarter of a millisecond.
        fd = os.open("/proc/self/oom_score_adj", os.O_RDWR)
        try:
            adjustment = max(int(os.read(fd, 16)), 300)
            os.pwrite(fd, b"%d" % adjustment, 0)
        finally:
            os.close(fd)
    except (OSError, ValueError):
        pass


def read_setup(sock):
    """The first frame, and nothing of what follows it."""
    length, kind, _ = TO_US.unpack(large.exactly(sock, TO_US.size))
    if kind != SETUP:
        raise RuntimeError("a pool's first word is its setup")
    return large.exactly(sock, length)


def leave(worker, error):
    """Ends the process: a task has raised SystemExit, or this is a copy of the worker that a task has forked.

    A copy sends nothing to the supervisor: the socket, and the results that wait for it, belong to the worker.
    """
    if not worker.prints.copied:
        worker.flush()
    elif not isinstance(error, SystemExit):
        traceback.print_exception(type(error), error, codec.own_frames_cut(error))
        error = SystemExit(1)
    finish(worker.prints)
    code = error.code
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    os._exit((code or 0) & 0xFF)


def finish(prints):
    """What an exiting interpreter does for its user."""
    import atexit

    for do in (atexit._run_exitfuncs, prints.flush, lambda: sys.stderr.flush()):
        try:
            do()
        except BaseException:
            pass
