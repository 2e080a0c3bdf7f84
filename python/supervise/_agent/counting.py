"""Wrappers that count what an application does, at a fifth of a microsecond for a request.

Each counter is an `itertools.count`, which no two threads can advance to the same number, and a store
into this process's slot. There are no clocks in here: two of them would double the price, and the
supervisor sees on its own when a number last moved.
"""

import os
from itertools import chain, count, repeat
from time import monotonic_ns

from . import page

IGNORED = frozenset(p for p in os.environ.get("SUPERVISE_AGENT_IGNORE", "").split(",") if p)

COUNTS = os.environ.get("SUPERVISE_AGENT_COUNT") != "0"


def _renew():
    """Starts the counters at zero, in the slot that is now this process's."""
    global begun, finish, ignore, slot
    slot = page.slot
    if not page.claimed:
        # The first begin claims. An end before it belongs to a request of the parent's.
        begun, finish, ignore = _begun_first, _nothing, _ignored_first
        return
    begun = count(1).__next__
    # One call in C, so that no thread can come between the number and its store: a stale FINISHED
    # would look like a request that never ends. A stale STARTED is mended by the next begin.
    finish = map(slot.__setitem__, repeat(page.FINISHED), count(1)).__next__
    ignore = map(slot.__setitem__, repeat(page.IGNORED), count(1)).__next__


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


def begin_timed():
    """A begin for what is rare enough to note its time."""
    number = begun()
    slot[page.STARTED] = number
    slot[page.BEGUN_NS] = monotonic_ns()


def finish_timed():
    finish()
    slot[page.DONE_NS] = monotonic_ns()


class Answer(chain):
    """An answer that is still being sent; its request is finished when the server closes it.

    `chain` makes it an iterator in C, so that nothing written in Python is in the way of a chunk.
    """

    __slots__ = ("inner", "environ")

    def __getattr__(self, name):
        # Python asks here too for a slot that was never set.
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def close(self):
        if self.environ is None:
            return
        self.environ = None
        try:
            close = getattr(self.inner, "close", None)
            if close is not None:
                close()
        finally:
            finish()


class SizedAnswer(Answer):
    """The same for an answer that has a length: servers make a Content-Length of a length of one."""

    __slots__ = ()

    def __len__(self):
        return len(self.inner)


def _shape(answer, environ):
    """What an answer of this type is followed by, if anything."""
    kind = type(answer)
    files = environ.get("wsgi.file_wrapper")
    if isinstance(files, type) and isinstance(answer, files):
        # Servers know their own file wrapper by its class, and send it by other means.
        shape = None
    else:
        shape = SizedAnswer if hasattr(kind, "__len__") else Answer
    # An application may make types as it goes.
    if len(_shapes) < 64:
        _shapes[kind] = shape
    return shape


_shapes = {list: None, tuple: None, bytes: None}


def wsgi(app):
    """Counts the requests of a WSGI application."""

    def counted(environ, start_response):
        if IGNORED and environ.get("PATH_INFO") in IGNORED:
            ignore()
            return app(environ, start_response)
        slot[1] = begun()
        try:
            answer = app(environ, start_response)
        except BaseException:
            finish()
            raise
        try:
            shape = _shapes[type(answer)]
        except KeyError:
            shape = _shape(answer, environ)
        if shape is None:
            finish()
            return answer
        followed = shape(answer)
        followed.inner = answer
        followed.environ = environ
        return followed

    return _dressed(counted, app)


def asgi(app):
    """Counts the requests and websockets of an ASGI application."""

    async def counted(scope, receive, send):
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        if IGNORED and scope.get("path") in IGNORED:
            ignore()
            return await app(scope, receive, send)
        slot[1] = begun()
        try:
            return await app(scope, receive, send)
        finally:
            finish()

    return _dressed(counted, app)


def bare(app):
    """The application without our wrapper, if it has one."""
    return app.__wrapped__ if getattr(app, "__code__", None) in _CODES else app


def _dressed(counted, app):
    """Lets a curious server or hook find on the wrapper what it would find on the application."""
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        try:
            setattr(counted, name, getattr(app, name))
        except (AttributeError, TypeError):
            pass
    counted.__dict__.update(getattr(app, "__dict__", ()))
    counted.__wrapped__ = app
    return counted


# Where a report finds the running requests: live frames of these, and the local that says which.
WRAPPER_CODES = (
    (wsgi(_nothing).__code__, "environ"),
    (asgi(_nothing).__code__, "scope"),
)
_CODES = frozenset(code for code, _ in WRAPPER_CODES)
