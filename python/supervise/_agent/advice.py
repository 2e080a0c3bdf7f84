"""Writes the advice of a report: what to do next, which depends on the verdict and on the cause (`causes`)."""
import sys

from . import causes, steps, suspects

# Releases of CPython whose incremental collector let memory grow (python/cpython#148726).
COLLECTOR_FROM, COLLECTOR_UNTIL = (3, 14, 0), (3, 14, 5)
# With more threads than this, malloc spreads over many arenas.
THREADS = 4
# A suspect with a holder tells more than one without, if it has at least this part of the growth of the first.
HELD = 0.3


def size(number):
    return "%.1fM" % (number / 1048576) if number < 10 << 20 else "%dM" % (number / 1048576)


def say(verdict, parts, listed, garbage):
    return of_version(sys.version_info) + of_verdict(verdict, parts, listed, garbage)


def of_version(version):
    if COLLECTOR_FROM <= tuple(version[:3]) < COLLECTOR_UNTIL:
        return ("This is CPython %d.%d.%d, whose incremental collector lets memory grow: use 3.14.5 or a later version "
                "first. " % tuple(version[:3]))
    return ""


def of_verdict(verdict, parts, listed, garbage):
    top = listed[0] if listed else None
    if verdict == "freed":
        threads = len(sys._current_frames())
        spread = " With %d threads, MALLOC_ARENA_MAX=2 helps too." % threads if threads > THREADS else ""
        return ("%s are free inside the allocator but not returned to the kernel: nothing leaks. Peaks or scattered "
                "small blocks keep the pages in use (fragmentation); process large data in smaller pieces, or use "
                "jemalloc.%s" % (size(parts.freed), spread))
    if verdict == "garbage":
        rarely = ("gc runs too rarely (thresholds %s); call gc.collect() now and then, or break the cycles (weakref)."
                  % (garbage["thresholds"],))
        why = rarely if garbage["enabled"] else "gc is off; call gc.enable(), or break the cycles (weakref)."
        place = " The cycles come from %s." % top["where"] if top and top["where"] else ""
        return "%s were uncollected reference cycles: %s%s" % (size(parts.garbage), why, place)
    if verdict == "native":
        return of_native(parts, listed)
    if verdict == "unknown":
        return "There was no time to count the objects: `supervise report WORKER` counts those of a worker that serves."
    if top is None:
        return "No single holder stands out; let the memory grow for longer while allocations are traced."
    held = [one for one in listed[:3] if one["chain"] and one["growth_bytes"] >= HELD * top["growth_bytes"]]
    # Objects of a special kind tell more than memory of C code, which they probably own.
    telling = [one for one in listed[:3] if suspects.is_telling(one)]
    if telling and (not held or held[0]["holder"] == steps.C_CODE):
        held = telling
    text = causes.advice(held[0] if held else top, top["where"])
    outside = verdict == "mixed" and parts.native > parts.python / 2
    return "About half is outside Python's objects. " + text if outside else text


def of_native(parts, listed):
    owners = [one for one in listed if causes.resources(causes.Suspect(one, None))]
    lines = [one for one in listed if one["note"] == suspects.WHILE_IT_RAN]
    if owners:
        text = causes.advice(owners[0], lines[0]["where"] if lines else None)
        return "%s are outside Python's objects. %s" % (size(parts.native), text)
    if lines:
        return ("%s are outside Python's objects. They grew while %s ran: close, free or replace the object that is "
                "filled there; if nothing is left to close, the library leaks." % (
                    size(parts.native), lines[0]["where"]))
    using = [name for name in ("ctypes", "_cffi_backend", "numpy", "mmap", "sqlite3") if name in sys.modules]
    return "%s are outside Python's objects: check C libraries%s." % (
        size(parts.native), " (loaded: %s)" % ", ".join(using) if using else "")
