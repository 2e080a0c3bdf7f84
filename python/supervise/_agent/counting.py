"""Wrappers that count the requests of an application, at less than a microsecond for each request.

Each counter is an `itertools.count`, which gives two threads never the same number, and a store into the slot of this
process. The wrappers read a clock only at the begin of a request.
"""

import os
from itertools import chain, count, repeat
from time import monotonic_ns

from . import page, protocol, routes

IGNORED = frozenset(p for p in os.environ.get("SUPERVISE_AGENT_IGNORE", "").split(",") if p)

COUNTS = os.environ.get("SUPERVISE_AGENT_COUNT") != "0"

# Makes a `send` that follows the streams of an application (`streams.py`). None: the server does not drain.
follow = None


def _renew():
    """Starts the counters at zero, in the slot that this process has now."""
    global area, begun, begun_unfollowed, finish, ignore, slot
    slot, area = page.slot, page.routes
    begun_unfollowed = None
    if not page.claimed:
        # The first request claims a slot. The end of a request before that belongs to a request of the parent.
        begun, finish, ignore = _begun_first, _nothing, _ignored_first
        return
    begun = count(1).__next__
    # This is one call in C, so that no other thread can run between the number and its store: a stale FINISHED would
    # look like a request that never ends. A stale STARTED is corrected by the next request.
    finish = map(slot.__setitem__, repeat(protocol.FINISHED), count(1)).__next__
    ignore = map(slot.__setitem__, repeat(protocol.IGNORED), count(1)).__next__


def _nothing():
    pass


def _begun_first():
    page.claim()
    return 0 if begun is _begun_first else begun()


def _ignored_first():
    page.claim()
    if ignore is not _ignored_first:
        ignore()


page.on_change(_renew)


def on_begin(act):
    """Calls `act()` when a request begins, in the thread of the request. None ends that."""
    global begun, begun_unfollowed
    if begun_unfollowed is not None:
        begun, begun_unfollowed = begun_unfollowed, None
    if act is None or not page.claimed:
        return
    number = begun_unfollowed = begun

    def followed():
        act()
        return number()

    begun = followed


def _begin_named(name):
    """Writes down the path of a request, or the name of a task, that begins now. If the kernel ends this process, the
    supervisor can say what it ran."""
    try:
        protocol.write_last_begun(area, protocol.LAST_BEGUN, name.encode())
    except Exception:
        # There is no name, or it is no text.
        protocol.write_last_begun(area, protocol.LAST_BEGUN, b"")


def begin_timed(name):
    """Counts the start of a task, and records the time. Only for tasks that take far longer than two reads of a clock."""
    number = begun()
    slot[protocol.STARTED] = number
    slot[protocol.BEGUN_NS] = monotonic_ns()
    _begin_named(name)


def finish_timed():
    finish()
    slot[protocol.DONE_NS] = monotonic_ns()


class Answer(chain):
    """An answer that is still being sent. Its request is finished when the server closes the answer.

    The base class `chain` is an iterator in C, so no Python code runs for a chunk.
    """

    __slots__ = ("inner", "environ")

    def __getattr__(self, name):
        # Python also calls this for a slot that was never set.
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def close(self):
        environ, self.environ = self.environ, None
        if environ is None:
            return
        try:
            close = getattr(self.inner, "close", None)
            if close is not None:
                close()
        finally:
            finish()
            routes.wsgi(environ)


class SizedAnswer(Answer):
    """The same for an answer that has a length: if the length is 1, servers send a Content-Length."""

    __slots__ = ()

    def __len__(self):
        return len(self.inner)


def _shape(answer, environ):
    """The class that wraps answers of this type, or None."""
    kind = type(answer)
    files = environ.get("wsgi.file_wrapper")
    if isinstance(files, type) and isinstance(answer, files):
        # Servers recognise their own file wrapper by its class, and send the file in another way.
        shape = None
    else:
        shape = SizedAnswer if hasattr(kind, "__len__") else Answer
    # Limited, because an application may create types at run time.
    if len(_shapes) < 64:
        _shapes[kind] = shape
    return shape


_shapes = {list: None, tuple: None, bytes: None}


def wsgi(app):
    """Counts the requests of a WSGI application."""
    started, begun_ns, last_begun = protocol.STARTED, protocol.BEGUN_NS, protocol.LAST_BEGUN
    write = protocol.write_last_begun

    def counted(environ, start_response):
        if IGNORED and environ.get("PATH_INFO") in IGNORED:
            ignore()
            return app(environ, start_response)
        slot[started] = begun()
        slot[begun_ns] = monotonic_ns()
        try:
            write(area, last_begun, environ["PATH_INFO"].encode())
        except Exception:
            _begin_named(None)
        try:
            answer = app(environ, start_response)
        except BaseException:
            finish()
            routes.wsgi(environ)
            raise
        try:
            shape = _shapes[type(answer)]
        except KeyError:
            shape = _shape(answer, environ)
        if shape is None:
            finish()
            routes.wsgi(environ)
            return answer
        followed = shape(answer)
        followed.inner = answer
        followed.environ = environ
        return followed

    return _with_attributes(counted, app)


def asgi(app):
    """Counts the requests and websockets of an ASGI application."""
    started, begun_ns = protocol.STARTED, protocol.BEGUN_NS

    async def counted(scope, receive, send):
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        if IGNORED and scope.get("path") in IGNORED:
            ignore()
            return await app(scope, receive, send)
        slot[started] = begun()
        slot[begun_ns] = monotonic_ns()
        _begin_named(scope.get("path"))
        followed = None
        if follow is not None:
            followed = send = follow(scope, receive, send)
        try:
            return await app(scope, receive, send)
        except BaseException as error:
            if followed is None or not followed.explains(error):
                raise
        finally:
            finish()
            routes.asgi(scope)
            if followed is not None and followed.stream is not None:
                await followed.stream.returned()

    return _with_attributes(counted, app)


def bare(app):
    """The application without the agent's wrapper."""
    return app.__wrapped__ if getattr(app, "__code__", None) in _CODES else app


def _with_attributes(counted, app):
    """Copies the attributes of the application to the wrapper, for servers and hooks that read them."""
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        try:
            setattr(counted, name, getattr(app, name))
        except (AttributeError, TypeError):
            pass
    counted.__dict__.update(getattr(app, "__dict__", ()))
    counted.__wrapped__ = app
    return counted


# A report finds the running requests by the frames of these functions, and by the local variable that describes the
# request.
WRAPPER_CODES = (
    (wsgi(_nothing).__code__, "environ"),
    (asgi(_nothing).__code__, "scope"),
)
_CODES = frozenset(code for code, _ in WRAPPER_CODES)
