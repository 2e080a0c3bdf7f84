"""Opening and closing tracing windows is safe while threads that Python did not create call into it.

    python test_windows.py AGENT        AGENT is the folder that holds the package of the agent
"""

import _tracemalloc
import ctypes
import os
import sys
import threading
import time

WINDOWS = 40
FOREIGN = 2

kept = []
called = threading.Event()
is_over = threading.Event()


@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
def call(_):
    """Python creates a thread state for each such call, and waits for the GIL while it is incomplete."""
    called.set()
    return 0


def wait_for_a_call():
    called.clear()
    assert called.wait(60), "no foreign thread called"


def foreign_threads():
    """Runs threads of the C library, one after the other."""
    library = ctypes.CDLL(None)
    while not is_over.is_set():
        thread = ctypes.c_ulong()
        library.pthread_create(ctypes.byref(thread), None, call, None)
        library.pthread_join(thread, None)


def main():
    sys.path.insert(0, sys.argv[1])
    from _agent import state, windows

    threads = [threading.Thread(target=foreign_threads, daemon=True) for _ in range(FOREIGN)]
    for thread in threads:
        thread.start()
    for _ in range(WINDOWS):
        windows.open({}, sys._getframe(), time.monotonic())
        kept.append([str(number) for number in range(1000)])
        wait_for_a_call()
        windows.close(sys._getframe(), time.monotonic())
        kept.append([str(number) for number in range(1000)])
        assert _tracemalloc.get_traced_memory()[0] == 0, "tracing continues after the window"
        assert not _tracemalloc.is_tracing() or sys.version_info >= (3, 12), "the interpreter looks for traces"
        wait_for_a_call()
    mine = state.of_process()
    assert mine.windows == WINDOWS, mine.windows
    mine.lines = {key: line for key, line in mine.lines.items() if key[0] == main.__code__.co_filename}
    (_, number), most = max(mine.lines.items(), key=lambda item: item[1][0])
    with open(__file__) as file:
        assert "kept.append" in file.readlines()[number - 1], mine.lines
    # The line was traced in all windows.
    assert most[2] == WINDOWS, mine.lines
    is_over.set()
    for thread in threads:
        thread.join()
    if sys.version_info < (3, 12):
        # What the application traces itself is left alone, and nothing else is traced from now on. (Its stop() is not
        # safe beside foreign threads.)
        import tracemalloc

        tracemalloc.start()
        windows.open({}, sys._getframe(), time.monotonic())
        windows.close(sys._getframe(), time.monotonic())
        assert tracemalloc.is_tracing()
        tracemalloc.stop()
        try:
            windows.open({}, sys._getframe(), time.monotonic())
        except ValueError:
            pass
        else:
            raise AssertionError("a window after tracemalloc.stop()")
    print("OK", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
