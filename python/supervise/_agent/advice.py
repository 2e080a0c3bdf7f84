"""The next step, in plain words."""
import sys

from . import places


def size(number):
    return "%.1f MB" % (number / 1e6)


def say(verdict, parts, listed, garbage):
    top = listed[0] if listed else None
    if verdict == "freed":
        return ("%s are free inside the allocator and not returned: nothing leaks. Peaks or scattered small blocks keep the "
                "pages; process large data in smaller pieces, or try jemalloc or MALLOC_ARENA_MAX=2." % size(parts.freed))
    if verdict == "garbage":
        why = "gc is switched off" if not garbage["enabled"] else "gc comes too seldom (thresholds %s)" % (garbage["thresholds"],)
        place = " Cycles come from %s." % top["where"] if top and top["where"] else ""
        return "%s were reference cycles that nobody collected: %s. Call gc.enable(), or break the cycle (weakref).%s" % (
            size(parts.garbage), why, place)
    if verdict == "native":
        using = [name for name in ("ctypes", "_cffi_backend", "numpy", "mmap", "sqlite3") if name in sys.modules]
        place = " It grew while %s ran." % top["where"] if top and top["where"] else ""
        return "%s are outside Python's objects: look at C libraries%s.%s" % (
            size(parts.native), " (loaded: %s)" % ", ".join(using) if using else "", place)
    if top is None:
        return "No single holder stands out; let it grow for longer with tracing armed."
    text = holder(top)
    return "About half is outside Python. " + text if verdict == "mixed" and parts.native > parts.python / 2 else text


def holder(top):
    kind = top.get("kind")
    place = " at %s" % top["where"] if top["where"] else ""
    name = "`%s`" % top["holder"] if top["holder"] else top["chain"][0] if top["chain"] else "something"
    if kind == "thread":
        return "%d threads started for %s have not ended; end them, join them, or use a pool." % (top["count"], top["where"])
    if kind == "task":
        return "%d tasks of %s never end; cancel them or give them a timeout." % (top["count"], top["where"])
    if top["holder"] is None and top["where"]:
        return "%s%s keeps what it allocates (%s)." % (top["function"] or "The code", place, size(top["growth_bytes"]))
    if kind == "class":
        return "%d classes were made at run time and are kept by %s; make each of them once." % (top["count"], name)
    what = "grew by %d entries" % top["count"] if kind == "container" else "keeps %d more %s" % (top["count"], top["type"])
    return "%s %s (%s)%s; bound it (functools.lru_cache(maxsize=...), deque(maxlen=...)), or drop what is done with." % (
        name, what, size(top["growth_bytes"]), ", filled" + place if place else "")
