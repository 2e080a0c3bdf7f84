"""Tracing windows: find the allocations that are made in a window and still alive at its end, by line of the app."""
import time

from . import allocators, ask, base, census, source_locations, state, time_budget, tracer

# Measured cost of one entry of tracemalloc's list of traces.
TRACE_BYTES = 200
TRACE_SECONDS = 1.5e-6
# Maximum time of closing a window.
CLOSE_SECONDS = 0.5
# Frames of a trace. Between an allocation in a library and the line of the app are often more than 20.
FRAMES = 25
FRAMES_MAX = 64
# Number of lines of the app that are kept of the traces of a line.
CALLERS = 32
# Lines are followed if the growth within windows is at least this, and Python's part of it is at most that.
NATIVE_MIN = 128 << 10
NATIVE_BELOW = 0.6


def open(request, frame, began):
    mine = state.of_process()
    mine.may_interrupt = bool(request.get("base"))
    if mine.may_interrupt:
        base.take_whole(mine, request.get("room") or 1 << 40, began)
    # Modules that are imported while tracing would be counted as the app's.
    from . import report  # noqa: F401
    if mine.window is None:
        ours = not tracer.is_app_tracing()
        mine.at_open = given_out() if ours else None
        if ours:
            tracer.start(max(1, min(FRAMES_MAX, int(request.get("frames") or FRAMES))))
        mine.window = (time.monotonic(), ours)
        follow(mine, frame)
        flag(True)
    return {"base": mine.base is not None, "tracing": True}


def given_out():
    """The bytes in use in the allocators, and the resident bytes of the process."""
    resident = int(ask.read("/proc/self/statm").split()[1]) * 4096
    return allocators.Reading(0).in_use(), resident


def grown_since(before):
    in_use, resident = given_out()
    in_use, resident = in_use - before[0], resident - before[1]
    # malloc takes memory from the kernel in steps. If far more became resident, it is in arenas of other code.
    return in_use if in_use > resident // 4 else resident


def follow(mine, frame):
    """Also follows lines, if earlier windows have shown that the growth is not Python's."""
    from . import lines
    if mine.grown_in_windows < NATIVE_MIN or mine.traced_part() > NATIVE_BELOW or not lines.may_follow():
        return
    mine.follower = lines.Follower()
    mine.follower.start(frame)


def end_following(mine):
    if mine.follower is None:
        return
    lines, total = mine.follower.stop()
    mine.followed += max(0, total)
    for line, grown in lines.items():
        mine.native_lines[line] = mine.native_lines.get(line, 0) + grown
    mine.follower = None


def close(frame, began):
    """Does the `close` request."""
    mine = state.of_process()
    join = None
    # In a small heap, the lines of new entries are read at each close. In a large heap this takes long, so it is done
    # less often. It always takes too long for a worker that serves.
    price = mine.join_price
    brief = census.estimate() < 2000000 and began - mine.joined >= price * 12
    if mine.window is not None and mine.may_interrupt and brief:
        from . import targets

        def join(look_up):
            at = time.monotonic()
            targets.line_joins(look_up, mine)
            mine.joined = time.monotonic()
            mine.join_price = mine.joined - at
    count, size = take(time_budget.TimeBudget(CLOSE_SECONDS, 1 << 40, began), join)
    return {"traces": count, "bytes": size}


def take(budget, join):
    """Ends the window and adds its live allocations to the state of the process. `join()` is called when nothing more is
    traced, but tracemalloc still knows the lines of objects."""
    import _tracemalloc

    mine = state.of_process()
    if mine.window is None:
        return 0, 0
    at, ours = mine.window
    end_following(mine)
    count = size = grown = 0
    try:
        if ours:
            tracer.pause()
            # pymalloc has figures again only now, because tracemalloc wrapped it.
            grown = grown_since(mine.at_open)
            mine.traced += time.monotonic() - at
        if _tracemalloc.is_tracing():
            held = _tracemalloc.get_tracemalloc_memory()
            if held * 2 < budget.room and held / 100 * TRACE_SECONDS < max(0.05, budget.left()):
                count, size = survivors(mine, _tracemalloc._get_traces(), ours)
            else:
                budget.missing.append("traces: %d bytes are too many" % held)
            if join is not None:
                join(_tracemalloc._get_object_traceback)
    finally:
        if ours:
            tracer.stop()
            mine.grown_in_windows += grown
            mine.traced_in_windows += size
        mine.window = None
        flag(False)
        mine.windows += 1
    return count, size


def survivors(mine, traces, ours):
    """Adds the traces to the state, by the most useful line of each. Traces share tracebacks, so the line is chosen
    once for each traceback."""
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
        frames = source_locations.outside(frames)
        if not frames:
            continue
        count += times
        size += bytes_here
        key = frames[source_locations.choose(frames)]
        line = lines.get(key)
        if line is None:
            line = lines[key] = [0, 0, frames[0], set()]
        line[0] += bytes_here
        line[1] += times
        line[3].update([frame for frame in frames if source_locations.is_app(frame[0])][:CALLERS])
    if not ours:
        # The app itself traces. Its traces include those from before the window, which would be added again each time.
        mine.lines.clear()
    for key, (bytes_here, times, leaf, callers) in lines.items():
        line = mine.lines.get(key)
        if line is None:
            if len(mine.lines) > 3000 and bytes_here < 4096:
                continue
            line = mine.lines[key] = [0, 0, 0, leaf, callers]
        elif len(line[4]) < CALLERS:
            line[4].update(callers)
        line[0] += bytes_here
        line[1] += times
        line[2] += 1
    return count, size


def flag(on):
    try:
        from . import page, protocol
        page.flag(protocol.TRACING, on)
    except Exception:
        pass
