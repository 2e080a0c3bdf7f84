"""A worker: reads tasks from its socket, runs them one after the other, and writes their results.

A worker shares a page of memory with the supervisor. The page outlives the worker. If the worker dies, the page shows
which of the tasks in its socket the worker had started, finished, or partly received.
"""

import gc
import importlib
import mmap
import os
import sys
import time
import traceback

from . import codec, large, peak, protocol
from .prints import SEEN, Prints
from .protocol import BEGUN, FINISHED, HALT, LARGEST, ORDER, RAISED, RECEIVING, REPLY, RESULT, TASK, UNSERIALIZABLE

CHUNK = large.CHUNK
# Results are buffered while more tasks wait, but no longer than this.
LATEST_NS = 1_000_000
# The memory is not measured after tasks shorter than this.
SHORT_NS = 1_000_000
LONGEST_NS = LARGEST * 1000


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

    def send(self, kind, body, micros=0):
        self.out += REPLY.pack(len(body), kind, self.number, micros, self.memory.kib)
        self.out += body

    def send_large(self, kind, body, micros):
        """Sends a frame without a copy of its body."""
        size = len(body)
        if size > LARGEST:
            kind = UNSERIALIZABLE
            body = self.task.describe(ValueError("a result of %d bytes is too large" % size))
        self.flush()
        self.prints.check()
        self.sock.sendall(REPLY.pack(len(body), kind, self.number, micros, self.memory.kib))
        self.sock.sendall(body)
        self.flushed = time.monotonic_ns()

    def flush(self):
        if self.out:
            self.prints.check()
            self.sock.sendall(self.out)
            self.out = bytearray()
        self.flushed = time.monotonic_ns()

    def serve(self):
        """Runs tasks until there are no more."""
        waiting = bytearray()
        done = 0
        head = ORDER.size
        unpack = ORDER.unpack_from
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
                elif kind == protocol.QUIT:
                    self.flush()
                    return
                elif kind == protocol.REPORT:
                    question = bytes(waiting[done + head : end])
                    done = end
                    self.report(number, question)
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
                    self.page[RECEIVING] = number
                    if length > CHUNK:
                        if not self.receive(waiting, number, length):
                            return
                        continue
            more = self.sock.recv(CHUNK)
            if not more:
                return
            waiting += more

    def report(self, number, question):
        """Makes a memory report between two tasks, and sends it."""
        try:
            # The agent is imported only here: most workers never report.
            ask = importlib.import_module(__package__ + ".agent.ask")
            answer = ask.answer_between_tasks(question.decode())
        except Exception as error:
            answer = '{"id": %d, "ok": false, "error": "%s"}' % (number, type(error).__name__)
        self.number = number
        self.send(protocol.REPORTED, answer.encode())
        self.flush()

    def receive(self, waiting, number, length):
        """Receives a large task into a buffer of its own and runs it. Returns False at the end of the connection."""
        body = large.body_of(self.sock, waiting, ORDER.size, length)
        if body is None:
            return False
        if isinstance(body, MemoryError):
            self.number = self.page[BEGUN] = number
            self.send(RAISED, self.task.describe(body))
            self.page[FINISHED] = number
        else:
            self.do(number, body)
        return True

    def do(self, number, body):
        self.number = number
        page = self.page
        if page[HALT]:
            self.send(protocol.NOT_BEGUN, b"")
            return
        clock = time.monotonic_ns
        begun = clock()
        page[BEGUN] = number
        kind = RESULT
        prints = self.prints
        try:
            value = self.task.run(body)
        except BaseException as error:
            if isinstance(error, SystemExit) or prints.copied:
                # SystemExit ends the process, as it does outside of a pool.
                leave(self, error)
            kind, words = RAISED, self.task.describe(error)
            error.__traceback__ = None
        else:
            if prints.copied:
                leave(self, SystemExit(0))
            try:
                words = self.task.encode(value)
            except BaseException as error:
                # If there is no memory for the encoded form, the result itself may well be serializable.
                kind = RAISED if isinstance(error, MemoryError) else UNSERIALIZABLE
                words = self.task.describe(error)
            value = None
        ended = clock()
        took = ended - begun
        if took > SHORT_NS:
            self.memory.update()
            prints.c_stdout.flush()
        if SEEN.prints:
            prints.end(number)
        micros = took // 1000 if took < LONGEST_NS else LARGEST
        if len(words) > CHUNK:
            self.send_large(kind, words, micros)
            page[FINISHED] = number
            return
        page[FINISHED] = number
        self.send(kind, words, micros)
        if took > SHORT_NS or ended - self.flushed > LATEST_NS or len(self.out) > CHUNK:
            self.flush()


def main(sock, page_fd, output, orders, task, generators):
    """Runs the worker and returns its exit status, which is 1 if it could not start.

    `output` is the pipe for what tasks print, the secret that begins the mark after each task's output, and C's stdout.
    `orders` are the settings of the pool. `task` is None if the template has not imported all modules. `generators` are
    the random generators, whose state forks must not share.
    """
    gc.enable()
    generators.renew()
    page = protocol.words(memoryview(mmap.mmap(page_fd, mmap.PAGESIZE)))
    os.close(page_fd)
    worker = Worker(sock, page, task)
    worker.prints = Prints(page, *output)
    raise_oom_score()
    try:
        if task is None:
            worker.task = task = codec.load(orders)
        task.initialize(read_setup(sock) if orders["codec"] == "pickle" else b"")
    except BaseException as error:
        worker.send(protocol.FAILED, codec.describe(error))
        return 1 if is_connected_after(worker.flush) else 0
    worker.memory.begin()
    # A HELLO has the version of the protocol in the field of the task.
    worker.number = protocol.VERSION
    worker.send(protocol.HELLO, b"")
    if is_connected_after(worker.serve):
        finish(worker.prints)
    return 0


def is_connected_after(send):
    """Calls `send`. Returns False if the supervisor has closed the socket."""
    try:
        send()
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def raise_oom_score():
    """Makes the kernel's OOM killer prefer this worker to the fork server and the template (proc(5))."""
    try:
        # Not open(): in a new fork, opening a text file takes a quarter of a millisecond.
        fd = os.open("/proc/self/oom_score_adj", os.O_RDWR)
        try:
            adjustment = max(int(os.read(fd, 16)), 300)
            os.pwrite(fd, b"%d" % adjustment, 0)
        finally:
            os.close(fd)
    except (OSError, ValueError):
        pass


def read_setup(sock):
    """Reads the first frame and nothing after it."""
    length, kind, version = ORDER.unpack(large.exactly(sock, ORDER.size))
    if kind != protocol.SETUP:
        raise RuntimeError("the first frame of a pool is not its setup")
    protocol.check(version)
    return large.exactly(sock, length)


def leave(worker, error):
    """Exits: a task has raised SystemExit, or this process is a copy of the worker that a task has forked.

    A copy sends nothing to the supervisor: the socket and the buffered results belong to the worker.
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
    """Does what the interpreter does at exit: runs exit handlers and flushes the output."""
    import atexit

    for do in (atexit._run_exitfuncs, prints.flush, lambda: sys.stderr.flush()):
        try:
            do()
        except BaseException:
            pass
