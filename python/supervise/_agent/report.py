"""The report: takes every measure that the time box and the room allow, in order of worth, and says what it left out."""
import gc
import sys
import time

from . import advice, allocators, books, box as boxes, census as counting, heap, holders, looks, places, running, suspects
from . import targets as choosing, verdict, windows

# Seconds for each object: gc.collect (measured 66 ms for 1 M) and a census while tracing, both doubled.
COLLECT = 1.5e-7
TRACED = 4e-7


def make(request, frame, began):
    box = boxes.Box(float(request.get("box_s") or 1.5), request.get("room") or 1 << 40, began)
    mine = books.books()
    objects = counting.estimate()
    join = None
    if mine.window is not None and box.allows(objects * TRACED, objects * 20, "lines of entries"):
        def join(look_up):
            choosing.line_joins(look_up, mine)
    windows.take(box, join)
    join = None
    looks.note_tracer()
    # Not before: pymalloc says nothing while tracemalloc stands in front of it.
    before = allocators.Reading()

    garbage = collect(box, objects)
    after = allocators.Reading(before.private) if garbage["collected"] is not None else before
    base = mine.base

    large = base.large if base is not None else 0
    complete = True
    found = []
    if box.allows(0.1 + objects * counting.PRICE * 0.3, objects * 20, "census"):
        large, complete, found = look(box, base, mine, after)
    parts = verdict.Parts(base, before, after, large, mine.cycles_freed, mine.pages_freed, request.get("baseline") or 0,
                          mine.traced_part())
    if not complete and found:
        # What hangs on the largest holder is Python's, even if the census did not come to it.
        parts.move(max([suspect["bytes"] for suspect in found if suspect["holder"]] + [0]) - parts.python)
    name = parts.verdict()
    live = max(parts.python, parts.native if name == "native" else 0, parts.garbage if name == "garbage" else 0)
    for suspect in found:
        suspect["growth_bytes"] = min(suspect["growth_bytes"], max(live, 1))
    python = suspects.by_line(mine, live if name != "native" else parts.python)
    native = suspects.by_native(mine, parts.native) if name in ("native", "mixed") else []
    listed = suspects.join(found + native, python, live)
    outside = sum([one["growth_bytes"] for one in native])
    explained = parts.explained(sum([one["growth_bytes"] for one in listed]) - outside, outside)
    next_step = advice.say(name, parts, listed, garbage)
    for one in listed:
        one.pop("lines", None)
        one.pop("kind", None)
    return {
        "verdict": name,
        # Of this process alone: the worker may have more processes.
        "private": before.private,
        "explained": explained,
        "suspects": listed,
        "gc": garbage,
        "malloc": {"in_use": after.malloc, "free": after.malloc_free, "arenas": after.arenas, "mmapped": after.mmapped,
                   "pymalloc_in_use": after.pymalloc, "pymalloc_free": after.pymalloc_free},
        "threads": running.threads(),
        "tasks": running.tasks(),
        "request": running.requests(frame),
        "grew": parts.as_dict(),
        "next": next_step,
        "cost": {"windows": mine.windows, "traced_s": round(mine.traced, 3), "took_s": round(box.spent(), 3),
                 "objects": objects},
        "base": "armed" if base is not None else "none",
        "missing": box.missing,
    }


def look(box, base, mine, after):
    """Census, choice of targets, search for holders: (bytes of large objects, suspects with a holder)."""
    # Half of what is left: the search for holders needs the rest.
    part = boxes.Box(box.left() * 0.5, box.room, time.monotonic())
    taken = counting.Census(part)
    box.missing.extend(part.missing)
    large, complete = taken.large, taken.complete
    python = max(1, after.in_use() - (base.reading.in_use() if base is not None else 0))
    things = []
    chosen = choosing.choose(box, taken, base, things)
    greenlets = []
    if "greenlet" in sys.modules:
        greenlets.extend([one for one in heap.objects() if looks.inherits(type(one), "greenlet", "greenlet")
                          or looks.inherits(type(one), "_greenlet", "greenlet")])
    loose = taken.loose
    hidden = taken.hidden | books.own_ids()
    taken = None
    search = holders.Search(box, things, loose, greenlets, hidden)
    try:
        ways = [search.best(thing) for thing in things]
        missing = {target.type_id for target, way in zip(chosen, ways) if way[0] is None and target.source == "type"}
        hints = holders.reach(box, missing) if missing and box.left() > 0.1 else {}
        return large, complete, suspects.by_holder(chosen, ways, mine, hints, python)
    finally:
        search.drop()
        del things[:], greenlets[:], loose[:]


def collect(box, objects):
    """Collects if the box allows; what it freed tells garbage from live objects."""
    said = {"collected": None, "uncollectable": len(gc.garbage), "enabled": _was_enabled(), "thresholds": list(gc.get_threshold()),
            "counts": list(gc.get_count()), "freed_bytes": 0}
    if box.allows(objects * COLLECT, 0, "gc.collect"):
        before = allocators.Reading(0)
        said["collected"] = gc.collect()
        said["freed_bytes"] = max(0, before.in_use() - allocators.Reading(0).in_use())
    return said


def _was_enabled():
    from . import ask
    return ask.collecting
