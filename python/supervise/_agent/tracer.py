"""tracemalloc switched on and off, without what its own switches do to threads that wait for the GIL.

While tracemalloc is on, PyMem_RawMalloc waits for the GIL. A thread that waits so when tracemalloc.stop() comes
crashes (python/cpython#128679, until 3.12.9 and 3.13.2), each exchange of that allocator can meet a thread that is
about to use it (python/cpython#131566), and a thread that waits and holds a lock may never get the GIL
(python/cpython#155725). A thread made by a C library is in that place whenever it calls into Python.

So tracemalloc is started once and not stopped, the raw allocator is put back at once, and a window exchanges the other
two alone, which nobody may use without the GIL. What PyMem_RawMalloc gives out, thread states mostly, is not traced.
"""
import _tracemalloc

from . import allocators

# PyMemAllocatorDomain, of Include/cpython/pymem.h.
RAW, MEM, OBJ = range(3)

# [allocator of each domain] without tracemalloc and with it, once we have started it.
without = traced = None


def is_others():
    """Whether the app traces itself."""
    return traced is None and _tracemalloc.is_tracing()


def put_on(frames):
    """Traces, each time with so many frames as the first time."""
    global without, traced
    if traced is not None and _tracemalloc.is_tracing():
        # Whoever was forked within a window has that of its parent.
        _tracemalloc.clear_traces()
        exchange(traced, MEM, OBJ)
        return
    try:
        without = allocators_now()
    except Exception:
        # No ctypes: its own switches are all there is.
        without = None
    _tracemalloc.start(frames)
    if without is not None:
        traced = allocators_now()
        exchange(without, RAW)


def take_off():
    """Traces no more, and forgets what was traced."""
    if traced is None:
        _tracemalloc.stop()
    else:
        exchange(without, MEM, OBJ)
        _tracemalloc.clear_traces()


def allocators_now():
    doors = allocators.libraries()
    # PyMemAllocatorEx is a context and four functions.
    found = [(doors.ctypes.c_void_p * 5)() for _ in (RAW, MEM, OBJ)]
    for domain, allocator in enumerate(found):
        doors.held.PyMem_GetAllocator(domain, allocator)
    return found


def exchange(them, *domains):
    for domain in domains:
        allocators.libraries().held.PyMem_SetAllocator(domain, them[domain])
