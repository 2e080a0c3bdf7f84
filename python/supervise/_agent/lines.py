"""Finds the lines of the app that ran while memory outside Python grew.

tracemalloc does not see allocations of C libraries. Once windows have shown that these are most of the growth, the
lines of the app are followed within further windows, by sys.settrace. From Python 3.12 on it is set in all threads.
Before that, it is set in the interrupted thread, and in each thread in which a request begins. At each step from line
to line, the memory that malloc and the kernel have given out is compared with the memory that tracemalloc knows. The
rest is native memory, and is attributed to the line that ran. Nothing is followed while a debugger or a coverage tool
is active.
"""
import posix
import sys
import threading
from operator import sub

from . import allocators, source_locations

# A smaller difference may be overhead: malloc gives out somewhat more than tracemalloc counts.
STEP = 16 << 10


class Follower:
    def __init__(self):
        import _tracemalloc
        self.traced = _tracemalloc.get_traced_memory
        # The memory of tracemalloc itself, which a line with many small allocations lets grow.
        self.tables = _tracemalloc.get_tracemalloc_memory
        libraries = allocators.libraries()
        self.mallinfo = libraries.mallinfo
        self.statm = posix.open("/proc/self/statm", posix.O_RDONLY | posix.O_CLOEXEC)
        # Called without releasing the GIL. Otherwise another thread would run its next line at each step of this one.
        self.pread = libraries.held.pread
        self.buffer = libraries.ctypes.c_char * 64
        self.size = libraries.ctypes.c_size_t
        self.lines = {}
        self.where = None
        self.frames = []
        self.last = self.first = None
        # Memory that was given out, but is not known to be resident yet.
        self.due = 0
        self.over = False

    def now(self):
        """(memory that Python's allocators gave out, malloc gave out, the kernel mapped, is resident), in bytes."""
        known = self.traced()[0] + self.tables()
        heap = 0
        if self.mallinfo is not None:
            info = self.mallinfo()
            heap = info.uordblks + info.hblkhd
        buffer = self.buffer()
        self.pread(self.statm, buffer, self.size(64), self.size(0))
        pages = buffer.value.split()
        return known, heap, int(pages[0]) * 4096, int(pages[1]) * 4096

    def grown(self, last, now):
        """The growth outside Python between two readings: what malloc gave out to other code, what other code mapped,
        and what became resident without having been given out since, in arenas that a library mapped long ago."""
        known, heap, mapped, resident = map(sub, now, last)
        given = max(known, heap, mapped) if resident >= 0 else min(known, heap, mapped)
        touched = beyond(resident, self.due + given if resident >= 0 else given)
        self.due = max(0, self.due + max(known, heap, mapped, key=abs) - resident)
        return beyond(heap, known) + beyond(mapped, max(heap, known, key=abs)) + touched

    def start(self, frame):
        """Follows the app's frames that run now, and the functions that they call."""
        self.first = self.last = self.now()
        while frame is not None:
            if source_locations.is_app(frame.f_code.co_filename) and frame.f_trace is None:
                if self.where is None:
                    self.where = (frame.f_code.co_filename, frame.f_lineno or frame.f_code.co_firstlineno)
                frame.f_trace = self.step
                self.frames.append(frame)
            frame = frame.f_back
        everywhere = getattr(threading, "settrace_all_threads", None)
        if everywhere is not None:
            everywhere(self.call)
        else:
            sys.settrace(self.call)
            in_requests(self.follow_thread)

    def follow_thread(self):
        """Follows the lines of the current thread. If call() of an earlier window was set here, it has removed itself when
        the thread called its next function."""
        if sys.gettrace() is None:
            sys.settrace(self.call)

    def stop(self):
        """Ends the following. Returns {(file, line): growth}, and the growth of the whole process meanwhile."""
        everywhere = getattr(threading, "settrace_all_threads", None)
        if everywhere is not None:
            everywhere(None)
        else:
            sys.settrace(None)
            in_requests(None)
        # RACE: another thread may be in `step`, or about to begin a request. It then ends its tracing itself.
        self.over = True
        for frame in self.frames:
            frame.f_trace = None
        del self.frames[:]
        self.due = 0
        total = self.grown(self.first, self.now())
        posix.close(self.statm)
        return self.lines, total

    def call(self, frame, event, argument):
        """Called when a function begins. Only the app's functions are followed, so the growth of a library is
        attributed to its caller."""
        if self.over:
            sys.settrace(None)
            return None
        if not source_locations.is_app(frame.f_code.co_filename):
            return None
        return self.step(frame, event, argument)

    def step(self, frame, event, argument):
        if self.over:
            sys.settrace(None)
            return None
        # An error here would end the tracing, and would be raised in the app.
        try:
            if event == "return":
                frame = frame.f_back
                while frame is not None and not source_locations.is_app(frame.f_code.co_filename):
                    frame = frame.f_back
            where = (frame.f_code.co_filename, frame.f_lineno) if frame is not None and frame.f_lineno else None
            # A reading takes far longer than most lines. The iterations of a loop in one line need only one.
            if where == self.where:
                return self.step
            grown = self.grown(self.last, self.now())
            if self.where is not None and (grown >= STEP or grown <= -STEP):
                self.lines[self.where] = self.lines.get(self.where, 0) + grown
            self.where = where
            self.last = self.now()
        except Exception:
            self.where = None
        return self.step


def beyond(change, explained):
    """The part of a change that another change in the same direction does not explain."""
    if change > 0:
        return max(0, change - max(0, explained))
    return min(0, change - min(0, explained))


def in_requests(act):
    """Calls `act()` when a request begins, in its thread; None ends that."""
    try:
        from . import counting
    except Exception:
        # This process counts no requests.
        return
    counting.on_begin(act)


def may_follow():
    return sys.gettrace() is None and allocators.libraries().mallinfo is not None
