"""Lines at which memory outside Python grows are found in threads, in one window after another.

    python test_lines.py AGENT        AGENT is the folder that holds the package of the agent
"""

import ctypes
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

THREADS = 4
SIZE = 4000000
ITERATIONS = 300

# It keeps the GIL, so that no other thread runs its next line meanwhile.
libc = ctypes.PyDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]


def allocate():
    libc.memset(libc.malloc(SIZE), 1, SIZE)


def request(_):
    allocate()
    return sum(number for number in range(ITERATIONS))


def check(lines):
    """All of the growth is found where the requests allocate, and no thread is followed afterwards."""

    class Follower(lines.Follower):
        readings = 0

        def now(self):
            self.readings += 1
            return super().now()

    follower = None
    together = threading.Barrier(THREADS)

    def serve(number):
        # Each thread serves one request.
        together.wait()
        if follower is not None:
            # The agent's wrapper of the application does this before each request.
            follower.follow_thread()
        return request(number)

    def serve_all():
        return list(pool.map(serve, range(THREADS)))

    with ThreadPoolExecutor(THREADS) as pool:
        # The threads exist before they are followed.
        serve_all()
        for window in range(3):
            follower = Follower()
            follower.start(sys._getframe())
            serve_all()
            found, total = follower.stop()
            codes = (allocate.__code__, request.__code__)
            inside = {line for code in codes for line in range(code.co_firstlineno, code.co_firstlineno + 6)}
            grown = sum(size for (path, line), size in found.items() if path == __file__ and line in inside)
            assert grown > THREADS * SIZE * 0.7, (window, found, total)
            # Two at each step from line to line, and not at each of the iterations in one line.
            assert follower.readings < THREADS * ITERATIONS, follower.readings
        follower = None
        serve_all()
        traces = list(pool.map(lambda _: together.wait() and sys.gettrace(), range(THREADS)))
        assert not any(traces), traces


def main():
    sys.path.insert(0, sys.argv[1])
    from _agent import lines

    tracemalloc.start()
    check(lines)
    print("OK", flush=True)


if __name__ == "__main__":
    main()
