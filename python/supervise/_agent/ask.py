"""Answers requests of the supervisor: reads DIR/ask/PID, does what it says, writes DIR/said/PID.json.

This runs in a signal handler, between two bytecodes of the app. So it takes no lock, prints nothing, raises nothing
and imports as little as possible.
"""
import gc
import posix
import sys
import time

from . import protocol, time_budget

DIR = __file__.rpartition("/")[0].rpartition("/")[0]

# If a report may take at most this many seconds, the replacement waits for the end of the process.
HURRY = 0.2

busy = False
# A signal came while a request was answered.
signalled = False
collecting = True
answered = None


def answer(signum=None, frame=None):
    """Answers one request.

    RACE: the supervisor may send the next request when it sees the answer, before this has returned. Python runs the
    handler of that signal within this one. It only notes the signal, and the request is answered at the end.
    """
    global busy, signalled
    if busy:
        signalled = True
        return
    signalled = False
    answer_request(frame or outside())
    frame = None
    if signalled:
        answer()


class Answering:
    """While a request is answered: no second one begins, and no collection of garbage. One that the agent's own
    allocations start would run finalizers of the app in a signal handler.

    `with` gives the time of the begin.
    """

    def __enter__(self):
        global busy, collecting
        busy = True
        collecting = gc.isenabled()
        gc.disable()
        return time.monotonic()

    def __exit__(self, *error):
        global busy
        if collecting:
            gc.enable()
        busy = False


def request_for(when_drained):
    """The request for this process, if it was not answered yet and is for this moment, or else None."""
    request = protocol.parse(read(path_of(posix.getpid())))
    is_known = answered == (posix.getpid(), request.get("id"))
    is_now = (request.get("when") == "after_drain") == when_drained
    return request if is_now and not is_known else None


def write_answer(request, frame, began):
    global answered
    pid = posix.getpid()
    write("%s/said" % DIR, pid, respond(request, frame, began))
    answered = (pid, request.get("id"))


def answer_request(frame):
    """Only Exception is swallowed: a signal handler of the server may run meanwhile, and its SystemExit must reach the
    server."""
    try:
        with Answering() as began:
            request = request_for(when_drained=False)
            if request is not None:
                write_answer(request, frame, began)
    except Exception:
        count_error()
    finally:
        frame = None


def answer_after_drain(limit):
    """Answers the request for a report of this process, which has answered its last request and is about to exit.
    `limit`: the maximum time, in seconds."""
    if busy:
        return
    with Answering() as began:
        request = request_for(when_drained=True)
        if request is None:
            return
        if limit is not None:
            request["time_budget_s"] = min(limit / time_budget.SLOWER, request["time_budget_s"])
        pid = posix.getpid()
        request["withdrawn"] = lambda: not is_wanted(pid)
        if request["time_budget_s"] > HURRY:
            request["clock"] = time_budget.patient_clock()
        restore = lower_priority()
        try:
            write_answer(request, sys._getframe(1), began)
        finally:
            restore()


def lower_priority():
    """Gives this thread a low priority, the lowest one if it may have its own back afterwards: the exit handlers that
    follow would starve with it on a busy machine. Returns the function that gives it back.

    SCHED_IDLE (sched(7)) would be lower still, but on a busy machine the report would not be finished in time.
    """
    own = posix.getpriority(posix.PRIO_PROCESS, 0)
    posix.setpriority(posix.PRIO_PROCESS, 0, max(own, 10))
    try:
        posix.setpriority(posix.PRIO_PROCESS, 0, own)
    except OSError:
        return lambda: None
    posix.setpriority(posix.PRIO_PROCESS, 0, 19)
    return lambda: posix.setpriority(posix.PRIO_PROCESS, 0, own)


def is_wanted(pid):
    """Whether there is a request for this process."""
    return posix.access(path_of(pid), posix.R_OK)


def path_of(pid):
    return "%s/ask/%d" % (DIR, pid)


def answer_between_tasks(text):
    """Answers a request of a pool, between two tasks of this worker."""
    with Answering() as began:
        # The template has frozen the objects that its forks share (gc.freeze), which hides the modules that hold most
        # objects. A report copies the pages of these objects in any case, because it reads them.
        gc.unfreeze()
        return respond(protocol.parse(text), None, began)


def respond(request, frame, began):
    """The text of the answer to a request. An error is an answer too."""
    said = protocol.answer(request)
    try:
        said.update(dispatch(request, frame, began))
    except Exception as error:
        said["ok"] = False
        said["error"] = describe(error)
        error = None
    said["took_s"] = round(time.monotonic() - began, 6)
    return protocol.render(said)


def dispatch(request, frame, began):
    protocol.check(request)
    kind = request.get("do")
    if kind == "gc":
        from . import garbage
        return garbage.collect()
    if kind == "base":
        from . import prepare
        return prepare.step()
    if kind in ("open", "close"):
        from . import windows
        return windows.open(request, frame, began) if kind == "open" else windows.close(frame, began)
    if kind == "report":
        from . import report, serving
        if request.get("when") == "idle" and not serving.is_quiet(0.0):
            return {"busy": True}
        try:
            return {"report": report.make(request, frame, began)}
        except time_budget.Withdrawn:
            return {"ok": False, "error": "it was withdrawn before it was complete"}
    raise ValueError("unknown request: %s" % kind)


def count_error():
    try:
        from . import page
        page.swallowed()
    except Exception:
        pass


def outside():
    """The frame of the app that the signal interrupted."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(DIR):
        frame = frame.f_back
    return frame


def describe(error):
    """The class of an exception, the text of a built-in one, and where in the agent it was raised."""
    text = type(error).__name__
    if type(error).__module__ == "builtins" and len(error.args) and type(error.args[0]) is str:
        text += ": " + error.args[0][:200]
    places = []
    step = error.__traceback__
    while step is not None:
        places.append("%s:%d" % (step.tb_frame.f_code.co_filename.rpartition("/")[2], step.tb_lineno))
        step = step.tb_next
    # The traceback keeps frames of the agent alive, and these keep objects of the app alive.
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
    """Writes the answer under a second name and renames it, so that a reader never sees half an answer."""
    hidden = "%s/.%d.tmp" % (directory, pid)
    descriptor = posix.open(hidden, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(text.encode())
        while len(rest):
            rest = rest[posix.write(descriptor, rest):]
    finally:
        posix.close(descriptor)
    posix.rename(hidden, "%s/%d.json" % (directory, pid))
