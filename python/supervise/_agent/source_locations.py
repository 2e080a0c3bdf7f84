"""Tells the app's code from other code, and describes its lines."""
import sys

from . import ask, introspect

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
            # The scripts that pip installs for servers.
            found.add(prefix + "/bin")
        _roots = tuple(sorted(path.rstrip("/") + "/" for path in found))
    return _roots


def is_ours(path):
    return path.startswith(ask.DIR)


def is_app(path):
    """Whether a file belongs to the app: not to the standard library or an installed package, and not generated."""
    known = _verdicts.get(path)
    if known is None:
        known = not (path.startswith("<") or "/site-packages/" in path or "/dist-packages/" in path
                     or path.startswith(roots()))
        if len(_verdicts) > 5000:
            _verdicts.clear()
        _verdicts[path] = known
    return known


def is_standard(path):
    """Whether a file belongs to the standard library, and not to the app or an installed package."""
    return not is_app(path) and not is_library(path)


def is_library(path):
    """Whether a file belongs to an installed package. If no line is the app's, such a line is the next best."""
    return "/site-packages/" in path or "/dist-packages/" in path


def outside(frames):
    """The frames of a trace up to the first one of the agent, which wraps the app of a server. No frames if these are
    only of the standard library: then the agent itself used it."""
    for index, frame in enumerate(frames):
        if is_ours(frame[0]):
            frames = frames[:index]
            return frames if any([is_app(one[0]) or is_library(one[0]) for one in frames]) else ()
    return frames


def choose(frames):
    """The index of the frame that is most useful to the reader. Frames are (file, line), the innermost first."""
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
    """The path of a file in an installed package, relative to `site-packages`; other paths are not changed."""
    for mark in ("/site-packages/", "/dist-packages/"):
        at = path.rfind(mark)
        if at >= 0:
            return path[at + len(mark):]
    return path


def stacks():
    """{thread: innermost frame outside the agent}. If a variable of an agent's frame referred to that frame, this would
    be a cycle, and would keep all objects alive that the agent reads."""
    found = {}
    for thread, frame in sys._current_frames().items():
        while frame is not None and is_ours(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is not None:
            found[thread] = frame
    frame = None
    return found


def frames_of(frame, limit=64):
    """(frame, file, line) from a live frame outwards, without frames of the agent."""
    found = []
    while frame is not None and len(found) < limit:
        path = frame.f_code.co_filename
        if not is_ours(path):
            # A frame between two lines has no line number.
            found.append((frame, path, frame.f_lineno or frame.f_code.co_firstlineno))
        frame = frame.f_back
    return found


def function_at(path, line):
    """The name of the function that contains a line, from the code objects of its module."""
    best = (0, None)
    for name, names in list(introspect.modules().values()):
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
        for name, member in list(introspect.class_dict(value).items()):
            if type(member) in (staticmethod, classmethod):
                member = member.__func__
            elif type(member) is property:
                member = member.fget
            title = introspect._QUALNAME(value) + "."
            found.extend([(code, title + inner) for code, inner in codes_of(member, path, 0)])
        return found
    if introspect.inherits(kind, "functools", "_lru_cache_wrapper"):
        for member in list(introspect.attributes(value)):
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
