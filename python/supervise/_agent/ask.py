"""Answers the supervisor's questions: reads DIR/ask/PID, does what it says, writes DIR/said/PID.json.

Runs inside a signal handler, between two bytecodes of the app. So it takes no lock, prints nothing, raises nothing
and imports as little as it can: JSON is read and written with the C module `_json`, since `json` brings `re` along.
"""
import gc
import posix
import sys
import time

DIR = __file__.rpartition("/")[0].rpartition("/")[0]

busy = False
collecting = True
answered = None


def answer(signum=None, frame=None):
    """Answers one request. A second signal that lands in the middle of an answer is not served.

    Only Exception is swallowed: a server's own handler may run while this one does, and its SystemExit must reach it.
    """
    global busy, answered, collecting
    if busy:
        return
    busy = True
    began = time.monotonic()
    # A collection that our own allocations set off would run finalizers of the app at a bad moment.
    collecting = gc.isenabled()
    gc.disable()
    try:
        pid = posix.getpid()
        request = parse(read("%s/ask/%d" % (DIR, pid)))
        key = (pid, request.get("id"))
        if key == answered:
            return
        said = {"id": request.get("id"), "do": request.get("do"), "ok": True}
        try:
            said.update(dispatch(request, frame or outside(), began))
        except Exception as error:
            said["ok"] = False
            said["error"] = describe(error)
            error = None
        said["took_s"] = round(time.monotonic() - began, 6)
        write("%s/said" % DIR, pid, render(said))
        answered = key
    except Exception:
        count_error()
    finally:
        frame = None
        if collecting:
            gc.enable()
        busy = False


def dispatch(request, frame, began):
    kind = request.get("do")
    if kind == "gc":
        from . import garbage
        return garbage.collect()
    if kind in ("open", "close"):
        from . import windows
        return windows.open(request, frame, began) if kind == "open" else windows.close(frame, began)
    if kind == "report":
        from . import report
        return {"report": report.make(request, frame, began)}
    raise ValueError("unknown request: %s" % kind)


def count_error():
    try:
        from . import page
        page.swallowed()
    except Exception:
        pass


def outside():
    """The frame that the signal interrupted."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(DIR):
        frame = frame.f_back
    return frame


def describe(error):
    """The class, the text of exceptions of our own making, and where in the agent it happened."""
    text = type(error).__name__
    if type(error).__module__ == "builtins" and len(error.args) and type(error.args[0]) is str:
        text += ": " + error.args[0][:200]
    places = []
    step = error.__traceback__
    while step is not None:
        places.append("%s:%d" % (step.tb_frame.f_code.co_filename.rpartition("/")[2], step.tb_lineno))
        step = step.tb_next
    # The traceback holds our frames, and those hold objects of the app.
    error.__traceback__ = None
    return text + " at " + " < ".join(reversed(places[-4:]))


def read(path):
    descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        parts = []
        while True:
            part = posix.read(descriptor, 65536)
            if not part:
                return b"".join(parts).decode()
            parts.append(part)
    finally:
        posix.close(descriptor)


def write(directory, pid, text):
    """By way of a second name, so that a reader never meets half an answer."""
    hidden = "%s/.%d.tmp" % (directory, pid)
    descriptor = posix.open(hidden, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(text.encode())
        while len(rest):
            rest = rest[posix.write(descriptor, rest):]
    finally:
        posix.close(descriptor)
    posix.rename(hidden, "%s/%d.json" % (directory, pid))


class Grammar:
    """What the C scanner wants to be told; the defaults of json.JSONDecoder."""
    strict = False
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo = {}


def parse(text):
    import _json
    return _json.make_scanner(Grammar)(text.strip(), 0)[0]


def render(value):
    kind = type(value)
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return str(value)
    if kind is float:
        return repr(value) if value - value == 0 else "null"
    if kind is str:
        import _json
        return _json.encode_basestring_ascii(value)
    if kind is dict:
        return "{%s}" % ",".join(["%s:%s" % (render(str(k)), render(v)) for k, v in value.items()])
    if kind is list or kind is tuple:
        return "[%s]" % ",".join([render(v) for v in value])
    return render("<%s>" % kind.__name__)
