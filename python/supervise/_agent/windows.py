"""Tracing windows: what was allocated while one was open and is still alive at its end, by line of the app."""
import time

from . import allocators, ask, books, box as boxes, census, looks, places, tracer

# Measured: what tracemalloc's list of one trace costs us, in bytes and seconds.
TRACE_BYTES = 200
TRACE_SECONDS = 1.5e-6
BASE_SECONDS = 0.4
# Lines are followed when so much has grown within windows and less than this part of it was Python's.
NATIVE_MIN = 1 << 20
NATIVE_BELOW = 0.6


def open(request, frame, began):
    mine = books.books()
    room = request.get("room") or 1 << 40
    ensure_base(mine, room, began)
    # Whatever is imported while tracing would be counted as the app's.
    from . import report  # noqa: F401
    if mine.window is None:
        ours = not tracer.is_others()
        mine.at_open = given_out() if ours else None
        if ours:
            tracer.put_on(max(1, min(32, int(request.get("frames") or 6))))
        mine.window = (time.monotonic(), ours)
        follow(mine, frame)
        flag(True)
    return {"base": mine.base is not None, "tracing": True}


def given_out():
    """What the allocators have in use, and what the kernel has mapped for the process, in bytes."""
    mapped = int(ask.read("/proc/self/statm").split()[0]) * 4096
    return allocators.Reading(0).in_use(), mapped


def follow(mine, frame):
    """Follows the lines as well where earlier windows have shown that the growth is not Python's."""
    from . import lines
    if mine.grown_in_windows < NATIVE_MIN or mine.traced_part() > NATIVE_BELOW or not lines.may_follow():
        return
    mine.follower = lines.Follower()
    mine.follower.start(frame)


def end_following(mine):
    if mine.follower is None:
        return
    for line, grown in mine.follower.stop().items():
        mine.native_lines[line] = mine.native_lines.get(line, 0) + grown
    mine.follower = None


def ensure_base(mine, room, began):
    if mine.base is not None:
        return
    looks.note_tracer()
    reading = allocators.Reading()
    objects = census.estimate()
    # From now: the first request has to import the agent, and a base that is cut short misleads every report.
    box = boxes.Box(BASE_SECONDS, room, time.monotonic())
    if not box.allows(0, objects * 16, "base census"):
        return
    taken = census.Census(box)
    mine.base = census.Base(taken, reading)
    mine.base.at = began


def close(frame, began):
    """Does the `close` request."""
    mine = books.books()
    join = None
    # The lines of new entries are asked for at each close of a small heap; a great one pays for it once in a while.
    price = mine.join_price
    if mine.window is not None and census.estimate() < 2000000 and began - mine.joined >= price * 12:
        from . import targets

        def join(look_up):
            at = time.monotonic()
            targets.line_joins(look_up, mine)
            mine.joined = time.monotonic()
            mine.join_price = mine.joined - at
    count, size = take(boxes.Box(0.5, 1 << 40, began), join)
    return {"traces": count, "bytes": size}


def take(box, join):
    """Ends the window: its survivors go to the books. `join()` is called while objects still know their lines."""
    import _tracemalloc

    mine = books.books()
    if mine.window is None:
        return 0, 0
    at, ours = mine.window
    end_following(mine)
    count = size = 0
    try:
        if _tracemalloc.is_tracing():
            held = _tracemalloc.get_tracemalloc_memory()
            if held * 2 < box.room and held / 100 * TRACE_SECONDS < max(0.05, box.left()):
                count, size = survivors(mine, _tracemalloc._get_traces(), ours)
            else:
                box.missing.append("traces: %d bytes of them are too many" % held)
            if join is not None:
                join(_tracemalloc._get_object_traceback)
    finally:
        if ours:
            tracer.take_off()
            # pymalloc can be read again only now: tracemalloc stood in front of it.
            in_use, mapped = given_out()
            in_use, mapped = in_use - mine.at_open[0], mapped - mine.at_open[1]
            # What malloc takes from the kernel comes in steps; much more than that was mapped by somebody else.
            mine.grown_in_windows += in_use if in_use > mapped // 4 else mapped
            mine.traced_in_windows += size
        mine.window = None
        flag(False)
        mine.windows += 1
        mine.traced += time.monotonic() - at
    return count, size


def survivors(mine, traces, ours):
    """Adds the traces to the books by the line that tells most. A traceback is shared by all its traces, so lines are
    chosen once for each."""
    by_traceback = {}
    for trace in traces:
        known = by_traceback.get(id(trace[2]))
        if known is None:
            by_traceback[id(trace[2])] = [trace[2], trace[1], 1]
        else:
            known[1] += trace[1]
            known[2] += 1
    count = size = 0
    lines = {}
    for frames, bytes_here, times in by_traceback.values():
        if not frames or any([places.is_ours(frame[0]) for frame in frames]):
            continue
        count += times
        size += bytes_here
        key = frames[places.choose(frames)]
        line = lines.get(key)
        if line is None:
            line = lines[key] = [0, 0, frames[0]]
        line[0] += bytes_here
        line[1] += times
    if not ours:
        # The app traces itself: its traces reach back beyond the window and would be added again each time.
        mine.lines.clear()
    for key, (bytes_here, times, leaf) in lines.items():
        line = mine.lines.get(key)
        if line is None:
            if len(mine.lines) > 3000 and bytes_here < 4096:
                continue
            line = mine.lines[key] = [0, 0, 0, leaf]
        line[0] += bytes_here
        line[1] += times
        line[2] += 1
    return count, size


def flag(on):
    try:
        from . import page
        page.flag(page.TRACING, on)
    except Exception:
        pass
