"""Finds the threads of the template that do not prevent forks, because their library starts them again in a fork.

OpenBLAS (its pthread build, as in the wheels of numpy and scipy), Arrow, which pandas imports, and the OpenMP
runtimes of LLVM and Intel have handlers for fork (pthread_atfork(3)). GNU libgomp has none: in a fork a parallel
region waits forever for threads that do not exist.
"""

import array
import os
import select
import signal
import threading
import time
import warnings

_HAVE_HANDLERS = ("libopenblas", "libscipy_openblas", "libiomp5", "libomp", "libarrow")
# The C library starts threads on behalf of other libraries, so it is never the answer.
_STARTERS = ("libc.so", "libc-", "libpthread", "ld-", "[vdso]")
# The stack of a thread can be found only while the thread waits. A thread of OpenMP spins for up to 0.2 s after its
# work.
WAIT_TIMEOUT = 1.0
# The trial takes some milliseconds. A library that cannot be forked hangs.
TRIAL_TIMEOUT = 10.0
# This much of the stack is searched, from its top, where the C library keeps its data about the thread.
STACK_TOP = 256 << 10


def unforkable(tids):
    """`(tid, what)` of each of these threads that would be missing in a fork."""
    if not tids:
        return []
    of_python = {thread.native_id: thread.name for thread in threading.enumerate() if thread.native_id}
    found, libraries = [], {}
    for tid in tids:
        library = None if tid in of_python else owner(tid)
        name = os.path.basename(library or "")
        if name.startswith(_HAVE_HANDLERS):
            libraries.setdefault(library, []).append(tid)
        elif tid in of_python:
            found.append((tid, "starts the thread %s" % of_python[tid]))
        elif is_alive(tid):
            found.append((tid, "starts a thread of %s" % (name or "an unknown library")))
    if libraries and not found and not survives_fork(list(libraries)):
        for library, its in libraries.items():
            what = "starts a thread of %s, which did not work in a fork" % os.path.basename(library)
            found += [(tid, what) for tid in its]
    return found


def is_alive(tid):
    return os.path.exists("/proc/self/task/%d" % tid)


def mappings():
    """The lines of /proc/self/maps as `[range, flags, offset, device, inode, path]` (proc(5))."""
    try:
        with open("/proc/self/maps", errors="surrogateescape") as file:
            return [line.rstrip("\n").split(None, 5) for line in file]
    except OSError:
        return []


def owner(tid):
    """The path of the library that has started a thread, or `None`.

    The C library keeps the start function of a thread near the top of the thread's stack: the start function is the
    uppermost word that points into a program or into a library other than the C library.
    """
    stack_pointer = waits_at(tid)
    if stack_pointer is None:
        return None
    code, stack = [], None
    for line in mappings():
        low, high = (int(number, 16) for number in line[0].split("-"))
        if low <= stack_pointer < high:
            stack = (max(stack_pointer, high - STACK_TOP), high)
        if "x" in line[1] and len(line) == 6 and not os.path.basename(line[5]).startswith(_STARTERS):
            code.append((low, high, line[5]))
    if stack is None:
        return None
    try:
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            memory.seek(stack[0] & ~7)
            content = memory.read(stack[1] - (stack[0] & ~7))
    except (OSError, ValueError, OverflowError):
        return None
    words = array.array("Q", content[: len(content) & ~7])
    for word in reversed(words):
        if word:
            for low, high, path in code:
                if low <= word < high:
                    return path
    return None


def waits_at(tid):
    """The stack pointer of a thread that waits in a system call; `None` if it does not wait, or /proc hides it."""
    end = time.monotonic() + WAIT_TIMEOUT
    while True:
        try:
            with open("/proc/self/task/%d/syscall" % tid) as file:
                words = file.read().split()
        except OSError:
            return None
        if len(words) >= 3:
            return int(words[-2], 16)
        if time.monotonic() > end:
            return None
        time.sleep(0.005)


def survives_fork(libraries):
    """Whether these libraries work in a fork. Tries them in a fork, and kills it if it hangs."""
    receiver, sender = os.pipe()
    pid = fork()
    if pid == 0:
        done = b"-"
        try:
            if all([exercise(library) for library in libraries]):  # noqa: C419 - each of them
                done = b"+"
        finally:
            os.write(sender, done)
            os._exit(0)
    os.close(sender)
    try:
        ready, _, _ = select.select([receiver], [], [], TRIAL_TIMEOUT)
        worked = bool(ready) and os.read(receiver, 1) == b"+"
    finally:
        os.close(receiver)
        os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass  # A SIGCHLD handler of the user has already waited for the process.
    return worked


def fork():
    """`os.fork` without the warning of Python 3.12 about threads, which are handled here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def exercise(library):
    """Multiplies matrices, runs a parallel region or reads a table. Returns whether the result is correct."""
    if os.path.basename(library).startswith("libarrow"):
        from pyarrow import csv, py_buffer

        # Arrow reads in one thread and parses in others.
        return csv.read_csv(py_buffer(b"a,b\n1,2\n3,4\n")).num_rows == 2
    import ctypes

    lib = ctypes.CDLL(library, mode=os.RTLD_NOW | getattr(os, "RTLD_NOLOAD", 0))
    region = getattr(lib, "GOMP_parallel", None)
    if region is not None:
        # Any function without an effect can be the `void (*)(void *)`. With 0, libgomp chooses the number of threads.
        nothing = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p)
        region.restype = None
        region(nothing, None, ctypes.c_uint(0), ctypes.c_uint(0))
        return True
    multiply = multiplication(lib)
    if multiply is None:
        return False
    size = 128  # Below 64 OpenBLAS uses only one thread.
    # OpenBLAS is built for integers of 32 or of 64 bits. A C long is passed correctly as both.
    count = ctypes.c_long(size)
    ones = (ctypes.c_double * (size * size))(*[1.0] * (size * size))
    result = (ctypes.c_double * (size * size))()
    row_major, as_it_is = ctypes.c_long(101), ctypes.c_long(111)
    one, zero = ctypes.c_double(1.0), ctypes.c_double(0.0)
    multiply.restype = None
    multiply(
        row_major, as_it_is, as_it_is, count, count, count, one, ones, count, ones, count, zero, result, count
    )  # fmt: skip
    return result[0] == result[size * size - 1] == size


def multiplication(lib):
    for prefix in ("", "scipy_"):
        for suffix in ("", "64_", "_64"):
            found = getattr(lib, prefix + "cblas_dgemm" + suffix, None)
            if found is not None:
                return found
    return None
