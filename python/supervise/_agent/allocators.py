"""Reads the figures of the allocators: the kernel's private bytes, glibc's heap, pymalloc's arenas.

All of these are exact and cheap (measured with 1 M live objects: pymalloc 0.5 ms, mallinfo2 below 0.1 ms; smaps_rollup
20 us per MB). So the verdict is based on them. Sampled figures only tell which code is responsible.
"""
import sys

from . import ask

loaded = None


class Libraries:
    """The C functions that are called through ctypes. Loaded on first use."""

    def __init__(self):
        import ctypes
        self.ctypes = ctypes
        # PyDLL keeps the GIL: no other thread may allocate while pymalloc counts its pools. CDLL releases it.
        self.held = ctypes.PyDLL(None)
        self.free = ctypes.CDLL(None)
        size = ctypes.c_size_t
        names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
        self.mallinfo = None
        for function, kind in (("mallinfo2", size), ("mallinfo", ctypes.c_uint)):
            try:
                self.mallinfo = getattr(self.held, function)
            except AttributeError:
                continue
            fields = [(name, kind) for name in names]
            self.mallinfo.restype = type("Mallinfo", (ctypes.Structure,), {"_fields_": fields})
            self.mallinfo.argtypes = []
            break


def libraries():
    global loaded
    if loaded is None:
        loaded = Libraries()
    return loaded


def private():
    """Private bytes of the process: Private_Clean + Private_Dirty + Swap. Without smaps_rollup: resident - shared."""
    try:
        total = 0
        for line in ask.read("/proc/self/smaps_rollup").splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:", "Swap:")):
                total += int(line.split()[1]) * 1024
        return total
    except OSError:
        words = ask.read("/proc/self/statm").split()
        return (int(words[1]) - int(words[2])) * 4096


def trim():
    """Returns free pages of glibc's heap to the kernel. Runs without the GIL, because it may take milliseconds."""
    try:
        libraries().free.malloc_trim(0)
        return True
    except Exception:
        return False


def glibc():
    """(in use, free, mmapped) of malloc in all its arenas, or None without glibc."""
    try:
        info = libraries().mallinfo()
        return info.uordblks + info.hblkhd, info.fordblks, info.hblkhd
    except Exception:
        return None


def pymalloc():
    """(in use, free, arenas) of pymalloc, or None if Python uses another allocator."""
    try:
        return count_pools(statistics())
    except Exception:
        return None


def statistics():
    """The text of sys._debugmallocstats, written to memory instead of stderr."""
    libs = libraries()
    ctypes = libs.ctypes
    start, length = ctypes.c_void_p(), ctypes.c_size_t()
    opener, closer, dump, free = (
        libs.held.open_memstream, libs.held.fclose, libs.held._PyObject_DebugMallocStats, libs.held.free)
    opener.restype = ctypes.c_void_p
    for function in (closer, dump, free):
        function.argtypes = [ctypes.c_void_p]
    stream = opener(ctypes.byref(start), ctypes.byref(length))
    if not stream:
        return ""
    try:
        dump(stream)
    finally:
        closer(stream)
    try:
        return ctypes.string_at(start.value, length.value).decode("ascii", "replace")
    finally:
        free(start)


def count_pools(text):
    used = spare = arenas = total = None
    for line in text.splitlines():
        head, _, tail = line.partition("=")
        digits = tail.strip().replace(",", "")
        if not digits.isdigit():
            continue
        number = int(digits)
        if head.startswith("# bytes in allocated blocks"):
            used = number
        elif head.startswith("# bytes in available blocks"):
            spare = number
        elif "unused pools" in head:
            spare = (spare or 0) + number
        elif "bytes/arena" in head:
            arenas, total = int(head.split()[0]), number
    if used is None or total is None:
        return None
    return used, spare or 0, arenas


class Reading:
    """The figures of all allocators at one time. `blocks` replaces pymalloc's figures if these are not available."""
    __slots__ = (
        "private", "malloc", "malloc_free", "mmapped", "pymalloc", "pymalloc_free", "arenas", "blocks", "known")

    def __init__(self, figure=None):
        self.private = private() if figure is None else figure
        heap = glibc()
        pools = pymalloc()
        self.malloc, self.malloc_free, self.mmapped = heap or (0, 0, 0)
        self.pymalloc, self.pymalloc_free, self.arenas = pools or (0, 0, 0)
        self.blocks = sys.getallocatedblocks()
        self.known = (heap is not None, pools is not None)

    def in_use(self):
        return self.malloc + self.pymalloc
