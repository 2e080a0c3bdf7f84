"""Starts and stops tracing with tracemalloc, without harm to threads that wait for the GIL.

While tracemalloc runs, PyMem_RawMalloc waits for the GIL. If tracemalloc.stop() is called during such a wait, the
waiting thread crashes (python/cpython#128679, until 3.12.9 and 3.13.2). Each exchange of that allocator may happen
while another thread is about to use it (python/cpython#131566). A thread that waits and holds a lock may never get the
GIL (python/cpython#155725). A thread that a C library started is in this situation whenever it calls into Python.

So tracemalloc is started once and never stopped, and the raw allocator is restored at once. A window exchanges only the
other two allocators, which may be used only with the GIL. Allocations of PyMem_RawMalloc, mostly thread states, are not
traced.

Between windows CPython still looks up each new object in the table of traces, which is empty then. That takes an eighth
of the time of a small request. Up to CPython 3.11 the switch for it is a variable of the interpreter, so a window turns
it on and off. After tracemalloc.stop() it must not be turned on. An application can call that only through the module
`tracemalloc`, so nothing is traced any more once that is imported.
"""
import sys

import _tracemalloc

from . import allocators

# PyMemAllocatorDomain, of Include/cpython/pymem.h.
RAW, MEM, OBJ = range(3)

# [allocator of each domain] without and with tracemalloc, once the agent has started it.
without = traced = None

# _Py_tracemalloc_config of CPython 3.8 to 3.11 (Modules/_tracemalloc.c): initialized, tracing, max_nframe.
config = None


def is_app_tracing():
    """Whether the app itself has started tracemalloc. Called between windows."""
    return _tracemalloc.is_tracing() and (traced is None or config is not None)


def start(frames):
    """Starts tracing. Later starts use the number of frames of the first one."""
    global config, without, traced
    if config is not None:
        if "tracemalloc" in sys.modules:
            raise ValueError("the application has imported tracemalloc")
        config[1] = 1
    if traced is not None and _tracemalloc.is_tracing():
        # A process that was forked within a window has the traces of its parent.
        _tracemalloc.clear_traces()
        exchange(traced, MEM, OBJ)
        return
    try:
        without = allocators_now()
    except Exception:
        # Without ctypes, only tracemalloc's own functions are available.
        without = None
    _tracemalloc.start(frames)
    if without is not None:
        traced = allocators_now()
        exchange(without, RAW)
        config = find_config(frames)


def find_config(frames):
    if "tracemalloc" in sys.modules:
        return None
    try:
        ctypes = allocators.libraries().ctypes
        found = (ctypes.c_int * 3).in_dll(ctypes.pythonapi, "_Py_tracemalloc_config")
    except Exception:
        return None
    return found if list(found) == [1, 1, frames] else None


def pause():
    """Stops tracing and keeps the traces, which are then read without being traced. A block that is freed meanwhile
    keeps its trace, so this must be short."""
    if traced is not None:
        exchange(without, MEM, OBJ)


def stop():
    """Stops tracing and discards the traces."""
    pause()
    if traced is None:
        _tracemalloc.stop()
    else:
        _tracemalloc.clear_traces()
        if config is not None:
            config[1] = 0


def allocators_now():
    libs = allocators.libraries()
    # PyMemAllocatorEx consists of a context and four functions.
    found = [(libs.ctypes.c_void_p * 5)() for _ in (RAW, MEM, OBJ)]
    for domain, allocator in enumerate(found):
        libs.held.PyMem_GetAllocator(domain, allocator)
    return found


def exchange(replacements, *domains):
    for domain in domains:
        allocators.libraries().held.PyMem_SetAllocator(domain, replacements[domain])
