"""Lists what runs at this moment: threads, tasks of asyncio, requests."""
import sys

from . import introspect, source_locations, state

THREADS = 20


def threads():
    """Name and stack of at most 20 threads, read without the lock of `threading`."""
    names = {}
    threading = sys.modules.get("threading")
    if threading is not None:
        for number, thread in list(threading._active.items()):
            name = dict(introspect.attributes(thread)).get("_name")
            names[number] = name if type(name) is str else None
    said = []
    for number, frame in list(source_locations.stacks().items())[:THREADS]:
        frames = source_locations.frames_of(frame, 24)
        stack = ["%s:%d %s" % (path, line, one.f_code.co_name) for one, path, line in frames]
        said.append({"name": names.get(number), "stack": stack})
    frame = frames = None
    return said


def tasks():
    """The number of tasks and the source locations of their functions, or None without asyncio."""
    asyncio = sys.modules.get("asyncio.tasks")
    if asyncio is None:
        return None
    from . import targets
    every = []
    for name in ("_all_tasks", "_scheduled_tasks", "_eager_tasks"):
        known = getattr(asyncio, name, None)
        if known is None:
            continue
        every.extend([task for task in [ref() for ref in list(getattr(known, "data", ()))] if task is not None])
        if not hasattr(known, "data") and type(known) is set:
            every.extend(known)
    if not every:
        return None
    places_of = {}
    for task in every[:2000]:
        place = targets.place_of(task, "task")
        if place is not None:
            key = "%s:%d %s" % place
            places_of[key] = places_of.get(key, 0) + 1
    task = None
    top = sorted(places_of.items(), key=lambda one: one[1], reverse=True)[:5]
    count = len(every)
    del every
    mine = state.of_process()
    before, mine.tasks = getattr(mine, "tasks", count), count
    return {"count": count, "growth": count - before, "places": [{"where": key, "count": n} for key, n in top]}


def requests(frame):
    """Running requests as text, from the frames of the wrappers that count them."""
    try:
        from . import counting
        codes = dict(counting.WRAPPER_CODES)
    except Exception:
        return None
    said = []
    for top in list(source_locations.stacks().values()):
        for one, path, line in own_frames(top):
            name = codes.get(one.f_code)
            if name is not None:
                text = describe(dict(introspect.locals_of(one)).get(name))
                if text:
                    said.append(text)
    top = one = None
    return said or None


def own_frames(frame):
    found = []
    while frame is not None and len(found) < 200:
        found.append((frame, frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return found


def describe(request):
    if type(request) is not dict:
        return None
    method = request.get("REQUEST_METHOD") or request.get("method") or request.get("type")
    path = request.get("PATH_INFO") or request.get("path")
    if type(path) is str:
        return "%s %s" % (method if type(method) is str else "?", path[:300])
    return None
