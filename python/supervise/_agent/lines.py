"""Which line of the app ran while memory outside Python grew.

tracemalloc does not see what C libraries allocate. So once windows have shown that most of the growth is theirs, the
lines of the app are followed within further windows (sys.settrace, the interrupted thread and, from Python 3.12 on, all
others), and at each step from line to line what malloc and the kernel have given out is held against what tracemalloc
knows of: the rest is native, and belongs to the line that ran. Nothing is followed where a debugger or a coverage tool
is at work.
"""
import sys
import threading

from . import allocators, places

# Below this it is slack between what malloc hands out and what tracemalloc counts.
STEP = 16 << 10


class Follower:
    def __init__(self):
        import _tracemalloc
        self.traced = _tracemalloc.get_traced_memory
        self.mallinfo = allocators.libraries().mallinfo
        self.statm = open("/proc/self/statm", "rb", 0)
        self.lines = {}
        self.where = None
        self.frames = []
        self.last = 0

    def outside(self):
        """Bytes that Python's allocators do not know of: the greater of what malloc and what the kernel says."""
        known = self.traced()[0]
        heap = 0
        if self.mallinfo is not None:
            info = self.mallinfo()
            heap = info.uordblks + info.hblkhd
        self.statm.seek(0)
        mapped = int(self.statm.read(64).split()[0]) * 4096
        return heap - known, mapped

    def start(self, frame):
        """Follows the app's frames that run now, and all that they call."""
        self.last = self.outside()
        while frame is not None:
            if places.is_app(frame.f_code.co_filename) and frame.f_trace is None:
                if self.where is None:
                    self.where = (frame.f_code.co_filename, frame.f_lineno)
                frame.f_trace = self.step
                self.frames.append(frame)
            frame = frame.f_back
        everywhere = getattr(threading, "settrace_all_threads", None)
        if everywhere is not None:
            everywhere(self.call)
        else:
            sys.settrace(self.call)

    def stop(self):
        everywhere = getattr(threading, "settrace_all_threads", None)
        if everywhere is not None:
            everywhere(None)
        else:
            sys.settrace(None)
        for frame in self.frames:
            frame.f_trace = None
        del self.frames[:]
        self.statm.close()
        return self.lines

    def call(self, frame, event, argument):
        """A function begins: only the app's are followed, so that a library's growth is its caller's."""
        if not places.is_app(frame.f_code.co_filename):
            return None
        return self.step(frame, event, argument)

    def step(self, frame, event, argument):
        # An error here would end the tracing and be raised in the app.
        try:
            now = self.outside()
            grown = max(now[0] - self.last[0], now[1] - self.last[1])
            if self.where is not None and (grown >= STEP or grown <= -STEP):
                self.lines[self.where] = self.lines.get(self.where, 0) + grown
            if event == "return":
                frame = frame.f_back
                while frame is not None and not places.is_app(frame.f_code.co_filename):
                    frame = frame.f_back
            self.where = (frame.f_code.co_filename, frame.f_lineno) if frame is not None else None
            self.last = self.outside()
        except Exception:
            self.where = None
        return self.step


def may_follow():
    return sys.gettrace() is None and allocators.libraries().mallinfo is not None
