"""Makes a memory report. Takes as many measurements as time and memory allow, the most useful ones first, and lists
those that it omitted."""
import gc
import sys
import time

from . import advice, allocators, census as counting, fills, heap, introspect, retention_paths, roots, running
from . import state, suspects, targets as choosing, time_budget, verdict, windows

# Seconds for each object of gc.collect (measured: 66 ms for 1 M objects) and of a census while tracing, both doubled.
COLLECT = 1.5e-7
TRACED = 4e-7
# A base is not used if so much of the growth came before it.
LATE = 0.6


def make(request, frame, began):
    budget = time_budget.TimeBudget(float(request.get("time_budget_s") or 1.5), request.get("room") or 1 << 40, began,
                                    request.get("clock", time.monotonic), request.get("withdrawn"))
    mine = state.of_process()
    objects = counting.estimate()
    join = None
    if mine.window is not None and budget.allows(objects * TRACED, objects * 20, "lines of entries"):
        def join(look_up):
            choosing.line_joins(look_up, mine)
    windows.take(budget, join)
    join = None
    introspect.note_tracer()
    # This must come after the window: pymalloc has no figures while tracemalloc wraps it.
    before = allocators.Reading()

    garbage = collect(budget, objects)
    after = allocators.Reading(before.private) if garbage["collected"] is not None else before
    base = mine.base
    baseline = request.get("baseline") or 0
    late = baseline + LATE * (before.private - baseline)
    if base is not None and baseline and before.private > base.reading.private > late:
        # Most of the growth of a worker that is always busy came before the base.
        base = None

    large = base.large if base is not None else 0
    complete = True
    found = []
    counted = budget.allows(0.1 + objects * counting.PRICE * 0.3, objects * 20, "census")
    if counted:
        large, complete, found = look(budget, base, mine, after)
    if budget.is_withdrawn():
        # The search was ended early. What it has found by then would mislead.
        raise time_budget.Withdrawn
    parts = verdict.Parts(base, before, after, large, mine.cycles_freed, mine.pages_freed, baseline,
                          mine.traced_part())
    # The objects of the largest holder are Python's, even if the census did not reach all of them: an untracked dict of
    # strings in a list is one object for it.
    size = "growth_bytes" if complete else "bytes"
    parts.move(max([suspect[size] for suspect in found if suspect["holder"]] + [0]) - parts.python)
    name = parts.verdict()
    if not counted and not mine.has_traced() and name in ("native", "mixed"):
        # Large objects look like memory outside Python.
        name = "unknown"
    live = max(parts.python, parts.native if name == "native" else 0, parts.garbage if name == "garbage" else 0)
    for suspect in found:
        suspect["growth_bytes"] = min(suspect["growth_bytes"], max(live, 1))
    python = suspects.by_line(mine, live if name != "native" else parts.python, parts.python_part())
    native = []
    if name in ("native", "mixed"):
        native = suspects.by_native(mine, parts.native)
        suspects.behind_native(found, native, parts.native)
    listed = suspects.join(found + native, python, live)
    fills.complete(listed[:3], mine, budget)
    outside = sum([one["growth_bytes"] for one in native])
    explained = parts.explained(sum([one["growth_bytes"] for one in listed]) - outside, outside)
    next_step = advice.say(name, parts, listed, garbage)
    for one in listed:
        one.pop("lines", None)
        one.pop("facts", None)
    return {
        "verdict": name,
        # Of this process only: the worker may have more processes.
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
        "cost": {"windows": mine.windows, "traced_s": round(mine.traced, 3), "took_s": round(budget.spent(), 3),
                 "objects": objects},
        "base": "armed" if base is not None else "none",
        "missing": budget.missing,
    }


def look(budget, base, mine, after):
    """Census, choice of targets, search for holders: (bytes of large objects, completeness, suspects with a holder)."""
    # Half of the time that is left: the search for holders needs the rest.
    part = budget.part(0.5)
    taken = counting.Census(part)
    budget.missing.extend(part.missing)
    large, complete = taken.large, taken.complete
    python = max(1, after.in_use() - (base.reading.in_use() if base is not None else 0))
    things = []
    named = roots.Roots(budget)
    chosen = choosing.choose(budget, taken, base, named, things)
    greenlets = instances(taken, is_greenlet) if "greenlet" in sys.modules else []
    exceptions = instances(taken, is_exception)
    loose = taken.loose
    hidden = taken.hidden | state.own_ids()
    taken = None
    hidden.update(map(id, named.parts()))
    search = retention_paths.Search(budget, named, things, loose, greenlets, exceptions, hidden)
    try:
        ways = [search.best(target.key) for target in chosen]
        missing = {target.reached() for target, way in zip(chosen, ways) if way.holder is None}
        hints = retention_paths.reach(budget, missing) if missing and budget.left() > 0.1 else {}
        return large, complete, suspects.by_holder(chosen, ways, mine, hints, python)
    finally:
        search.drop()
        del things[:], greenlets[:], exceptions[:], loose[:]


def is_greenlet(kind):
    return introspect.inherits(kind, "greenlet", "greenlet") or introspect.inherits(kind, "_greenlet", "greenlet")


def is_exception(kind):
    return issubclass(kind, BaseException)


def instances(census, is_wanted):
    """The objects of those types of the census that are wanted."""
    keys = {key for key in census.types if is_wanted(census.kinds[key][0])}
    return [one for one in heap.objects() if id(type(one)) in keys] if keys else []


def collect(budget, objects):
    """Collects if the budget allows. The memory that this frees was garbage; the rest is live objects."""
    said = {"collected": None, "uncollectable": len(gc.garbage), "enabled": _was_enabled(),
            "thresholds": list(gc.get_threshold()), "counts": list(gc.get_count()), "freed_bytes": 0}
    if budget.allows(objects * COLLECT, 0, "gc.collect"):
        before = allocators.Reading(0)
        said["collected"] = gc.collect()
        said["freed_bytes"] = max(0, before.in_use() - allocators.Reading(0).in_use())
    return said


def _was_enabled():
    from . import ask
    return ask.collecting
