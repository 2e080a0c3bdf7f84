"""Which code is the app's, and what its lines are called."""
import sys

from . import ask, looks

_verdicts = {}
_roots = None


def roots():
    global _roots
    if _roots is None:
        import os
        home = os.path.dirname(os.__file__)
        found = {home, ask.DIR}
        for prefix in (sys.prefix, sys.base_prefix):
            found.add("%s/lib/python%d.%d" % ((prefix,) + sys.version_info[:2]))
            # The scripts that pip makes for servers.
            found.add(prefix + "/bin")
        _roots = tuple(sorted(path.rstrip("/") + "/" for path in found))
    return _roots


def is_ours(path):
    return path.startswith(ask.DIR)


def is_app(path):
    """Whether a file is the app's own: not of the standard library, not installed, not made up."""
    known = _verdicts.get(path)
    if known is None:
        known = not (path.startswith("<") or "/site-packages/" in path or "/dist-packages/" in path
                     or path.startswith(roots()))
        if len(_verdicts) > 5000:
            _verdicts.clear()
        _verdicts[path] = known
    return known


def is_library(path):
    """Installed by the app's owner, so better than the standard library when no line is the app's."""
    return "/site-packages/" in path or "/dist-packages/" in path


def choose(frames):
    """The index of the frame that tells the reader most; frames are (file, line), the innermost first."""
    fallback = None
    for index, frame in enumerate(frames):
        if is_app(frame[0]):
            return index
        if fallback is None and is_library(frame[0]):
            fallback = index
    if fallback is not None:
        return fallback
    for index, frame in enumerate(frames):
        if not frame[0].startswith("<"):
            return index
    return 0


def short(path):
    """A path as a reader wants it: relative to where the app runs, or from its package on."""
    for mark in ("/site-packages/", "/dist-packages/"):
        at = path.rfind(mark)
        if at >= 0:
            return path[at + len(mark):]
    return path


def stacks():
    """{thread: innermost frame outside the agent}. A frame of ours in a variable of its own would be a cycle, and keep
    all that the agent looks at."""
    found = {}
    for thread, frame in sys._current_frames().items():
        while frame is not None and is_ours(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is not None:
            found[thread] = frame
    frame = None
    return found


def frames_of(frame, limit=64):
    """(frame, file, line) from a live frame outwards, the agent's own left out."""
    found = []
    while frame is not None and len(found) < limit:
        path = frame.f_code.co_filename
        if not is_ours(path):
            # A frame that is between two lines has no line number.
            found.append((frame, path, frame.f_lineno or frame.f_code.co_firstlineno))
        frame = frame.f_back
    return found


def function_at(path, line):
    """The name of the function that a line lies in, from the code that its module holds."""
    best = (0, None)
    for name, names in list(looks.modules().values()):
        if names.get("__file__") != path or type(names.get("__file__")) is not str:
            continue
        queue = []
        for value in list(names.values()):
            queue.extend(codes_of(value, path, 2))
        count = 0
        while queue and count < 4000:
            code, prefix = queue.pop()
            count += 1
            if code.co_filename != path:
                continue
            title = prefix + code.co_name
            if best[0] < code.co_firstlineno <= line and line <= last_line(code):
                best = (code.co_firstlineno, getattr(code, "co_qualname", title))
            for constant in code.co_consts:
                if type(constant) is type(code):
                    queue.append((constant, title + "."))
    return best[1]


def codes_of(value, path, depth):
    kind = type(value)
    if kind is type(codes_of):
        found = [(value.__code__, "")]
        if depth:
            inner = value.__dict__.get("__wrapped__")
            if type(inner) is kind:
                found.extend(codes_of(inner, path, depth - 1))
            for cell in value.__closure__ or ():
                try:
                    if type(cell.cell_contents) is kind:
                        found.extend(codes_of(cell.cell_contents, path, depth - 1))
                except ValueError:
                    pass
        return found
    if issubclass(kind, type) and depth:
        found = []
        for name, member in list(looks.class_dict(value).items()):
            if type(member) in (staticmethod, classmethod):
                member = member.__func__
            elif type(member) is property:
                member = member.fget
            title = looks._QUALNAME(value) + "."
            found.extend([(code, title + inner) for code, inner in codes_of(member, path, 0)])
        return found
    if looks.inherits(kind, "functools", "_lru_cache_wrapper"):
        for member in list(looks.attributes(value)):
            if member[0] == "__wrapped__":
                return codes_of(member[1], path, depth - 1) if depth else []
    return []


def last_line(code):
    try:
        if hasattr(code, "co_lines"):
            return max(line for _, _, line in code.co_lines() if line)
        import dis
        return max(line for _, line in dis.findlinestarts(code))
    except Exception:
        return code.co_firstlineno + 1000
