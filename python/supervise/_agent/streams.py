"""Event streams (SSE) and WebSockets of ASGI applications while their server drains.

They do not end by themselves, so a server that stops cuts them or waits for them without end. With this, they stay open
for `GRACE` seconds. Then each client is told, in small batches, so that not all of them reconnect in one moment: a
WebSocket is closed with code 1012 (service restart), and the response of an event stream ends after a whole event. The
application learns it as it learns that a client has disconnected.

Other answers are never ended here: a client would take the part of a download for the whole.
"""

import asyncio
import time

from . import counting, page
from .drain import LINGER, TICK
from .stream_grace import BATCHES, GRACE, PATIENCE, SPREAD, end_of_last_event, is_between_events

# Interval between two heartbeats.
BEAT = 1.0

# WebSocket close code "service restart", in the registry of RFC 6455, section 11.7.
RESTART = 1012

# The version of the ASGI specification from which on `send` raises an OSError after a disconnect.
RAISES = (2, 4)

# The time after the end in which other messages of the application are ignored.
IGNORED = 1.0

# The streams that are open, and those that were ended and whose application has not returned.
_open = set()

# Whether the time for streams is over. One that begins now ends at once.
_is_late = False

# What the server in this process does about a stream besides the messages of ASGI: it is called with the `receive` of
# the stream, before and after the end is sent.
before_end = after_end = None


class Ended(ConnectionResetError):
    """The application sends more after its client was told."""


class Request:
    """The `send` of one request or WebSocket. It passes messages on, and finds out whether they are a stream."""

    __slots__ = ("scope", "receive", "inner", "stream")

    def __init__(self, scope, receive, send):
        self.scope = scope
        self.receive = receive
        self.inner = send
        self.stream = None

    def __call__(self, message):
        if self.stream is not None:
            return self.stream.send(message)
        kind = message["type"]
        if kind == "http.response.start":
            if _is_event_stream(message):
                return self._begin(EventStream, message)
        elif kind == "websocket.accept":
            return self._begin(WebSocket, message)
        return self.inner(message)

    def _begin(self, kind, message):
        try:
            stream = kind(self)
        except RuntimeError:
            # This is another event loop, such as trio's.
            return self.inner(message)
        self.stream = stream
        _open.add(stream)
        return stream.send(message)

    def explains(self, error):
        """Whether the application raises this only because its stream was ended."""
        stream = self.stream
        if stream is None:
            return False
        if isinstance(error, asyncio.CancelledError):
            if stream.is_cancelled and hasattr(asyncio.Task, "uncancel"):
                asyncio.current_task().uncancel()
            return stream.is_cancelled
        # An exception group (Python 3.11) contains the exceptions of several tasks.
        split = getattr(error, "split", None) if hasattr(error, "exceptions") else None
        return isinstance(error, Ended) or split is not None and split(Ended)[1] is None


class _Stream:
    """An open stream."""

    def __init__(self, request):
        self.request = request
        self.loop = asyncio.get_running_loop()
        # Messages of the application that the server has not sent yet.
        self.sending = 0
        # It ends at the next moment at which it can.
        self.ends = _is_late
        self.is_told = False
        self.told_at = None
        # The task that tells the client.
        self.telling = None
        # The application has ended it.
        self.is_over = False
        self.is_cancelled = False

    async def send(self, message):
        if self.is_told:
            return self._refuse()
        message = self.pass_on(message)
        self.sending += 1
        try:
            return await self.request.inner(message)
        finally:
            self.sending -= 1
            if self.is_told:
                self._after_end()
            elif self.ends and not self.is_cancelled:
                await self.end()

    def _refuse(self):
        # An application that goes on in spite of this would do so without end.
        if self.raises_at_once() or time.monotonic() > self.told_at + IGNORED:
            raise Ended("the server restarts, and the stream was closed")

    async def end(self, is_last_call=False):
        """Tells the client, unless the application is in the middle of a message or an event."""
        self.ends = True
        if self.is_told or self.is_over or self.sending or not (is_last_call or self.is_between_events()):
            return
        self._mark_told()
        try:
            await self.request.inner(self.LAST)
        except Exception:
            # The client has disconnected.
            pass
        self._after_end()

    def _mark_told(self):
        self.is_told = True
        self.told_at = time.monotonic()
        self._call(before_end)

    def _after_end(self):
        self._call(after_end)

    def tell(self):
        self.telling = asyncio.ensure_future(self.end())
        return self.telling

    def over(self):
        self.is_over = True
        _open.discard(self)

    async def returned(self):
        """The application has returned. Its server closes the connection now, so the client should have replied."""
        self.over()
        if self.telling is not None and not self.telling.done():
            await asyncio.wait({self.telling}, timeout=PATIENCE / 2)

    def _call(self, hook):
        try:
            if hook is not None:
                hook(self.request.receive)
        except Exception:
            page.swallowed()

    def cancel(self):
        if not self.is_over and not self.is_cancelled:
            task = _task_of(self.request)
            if task is not None:
                self.is_cancelled = True
                task.cancel()


class WebSocket(_Stream):
    LAST = {"type": "websocket.close", "code": RESTART, "reason": ""}

    def raises_at_once(self):
        # `receive` tells the application. Many do not expect an error of `send`, and would log it.
        return False

    def pass_on(self, message):
        if message["type"] == "websocket.close":
            self.over()
        return message

    def is_between_events(self):
        return True


class EventStream(_Stream):
    LAST = {"type": "http.response.body", "body": b"", "more_body": False}

    def __init__(self, request):
        super().__init__(request)
        self.tail = b""
        self.is_encoded = False

    def raises_at_once(self):
        # Servers of an older specification ignore what is sent after a disconnect.
        version = self.request.scope.get("asgi", {}).get("spec_version", "2.0")
        return tuple(map(int, version.split("."))) >= RAISES

    def pass_on(self, message):
        if message["type"] == "http.response.start":
            self.is_encoded = any(name.lower() == b"content-encoding" for name, _ in message["headers"])
        elif message["type"] == "http.response.body":
            if not message.get("more_body", False):
                self.over()
                return message
            body = bytes(message.get("body", b""))
            if self.ends and not self.is_encoded:
                end = end_of_last_event(self.tail, body)
                if end is not None:
                    self._mark_told()
                    return {**message, "body": body[:end], "more_body": False}
            self.tail = (self.tail + body)[-4:]
        return message

    def is_between_events(self):
        return self.is_encoded or is_between_events(self.tail)


def _is_event_stream(message):
    headers = message.get("headers")
    # Another iterable can be read only once.
    if headers.__class__ is not list and headers.__class__ is not tuple:
        return False
    try:
        for name, value in headers:
            if len(name) == 12 and name.lower() == b"content-type":
                return value[:17].lower() == b"text/event-stream"
    except Exception:
        # The server refuses these headers.
        pass
    return False


def _task_of(request):
    """The task that runs the application. The application may send from another one."""
    for task in asyncio.all_tasks():
        coroutine = task.get_coro()
        while hasattr(coroutine, "cr_frame"):
            frame = coroutine.cr_frame
            if frame is not None and frame.f_locals.get("followed") is request:
                return task
            coroutine = coroutine.cr_await
    return None


def install():
    """Follows the streams of the application. The drain of the server calls `drain()`."""
    counting.follow = Request


def _mine():
    """The open streams of the running event loop: a process may have servers in several threads."""
    loop = asyncio.get_running_loop()
    return [stream for stream in list(_open) if stream.loop is loop]


async def drain(begun, beat=None, is_aborted=None, limit=GRACE):
    """Ends all streams, and returns when their applications have returned. Returns the seconds in which their clients
    should be able to close the connections.

    `begun`: the begin of the drain. `beat()` sends a heartbeat. `is_aborted()`: the server stops at once. `limit`: the
    server's own time limit.
    """
    global _is_late
    watch = _Watch(beat, is_aborted)
    had_any = bool(_mine())
    await watch.until(lambda: not _mine(), begun + min(GRACE, limit))
    _is_late = True
    await _tell_all(watch)
    await watch.until(lambda: not _mine(), time.monotonic() + PATIENCE)
    rest = _mine()
    if rest:
        # A client that reads nothing blocks this.
        await asyncio.wait({asyncio.ensure_future(stream.end(is_last_call=True)) for stream in rest}, timeout=TICK)
    for stream in rest:
        stream.cancel()
    await watch.until(lambda: not _mine(), time.monotonic() + PATIENCE / 2)
    return min(LINGER, PATIENCE / 2) if had_any else 0


async def _tell_all(watch):
    streams = [stream for stream in _mine() if not stream.ends]
    size = -(-len(streams) // BATCHES) or 1
    for first in range(0, len(streams), size):
        for stream in streams[first : first + size]:
            stream.tell()
        await watch.until(lambda: False, time.monotonic() + SPREAD / BATCHES)


class _Watch:
    """Waits for conditions, and sends heartbeats meanwhile."""

    def __init__(self, beat, is_aborted):
        self.beat = beat
        self.is_aborted = is_aborted
        self.last = time.monotonic()

    async def until(self, is_met, end):
        while time.monotonic() < end and not is_met():
            if self.is_aborted is not None and self.is_aborted():
                return
            if self.beat is not None and time.monotonic() > self.last + BEAT:
                self.last = time.monotonic()
                self.beat()
            await asyncio.sleep(min(TICK, max(end - time.monotonic(), 0)))
