"""Event streams (SSE) of WSGI applications, in gunicorn's workers that call the application themselves.

While such a worker stops, it waits for their generators, and is then killed in the middle of an event. With this, a
stream that is open when the worker gets TERM has its time (`stream_grace.py`). Then its response ends after a whole
event, and its generator is closed as if the client had disconnected.

The response of a generator that waits for its next event is ended from another thread. The generator itself cannot be
interrupted.
"""

import _thread
import itertools
import sys
import time

from . import page, servers
from .stream_grace import AFTER, BATCHES, GRACE, SPREAD, end_of_last_event, is_between_events

# Interval at which the thread looks for streams that wait.
LOOK = 0.1

# Has one entry until the worker gets TERM.
_first = iter((True,))
_ends_at = None
_numbers = itertools.count()


def worker(module):
    servers.before(module.Worker, "handle_exit", _begin)


def gthread(module):
    if "handle_exit" in vars(module.ThreadWorker):
        servers.before(module.ThreadWorker, "handle_exit", _begin)


def _begin(stopping, *_):
    """The worker gets TERM. Until then, responses are written as without the agent."""
    global _ends_at
    # RACE: gunicorn repeats TERM, and the second one may interrupt this function: next() is one step. A response that
    # is wrapped twice would wait for its own lock.
    if not next(_first, False):
        return
    module = sys.modules["gunicorn.http.wsgi"]
    # When the whole server stops, its master kills the workers at the end of its graceful timeout.
    _ends_at = time.monotonic() + max(min(GRACE, stopping.cfg.graceful_timeout - AFTER), 0)
    response_class = module.Response
    original = response_class.write

    def write(response, data):
        stream = _stream_of(response)
        if stream is None:
            return original(response, data)
        return stream.write(original, response, data)

    response_class.write = write
    # The lock of `threading` may be held here, because this is a signal handler.
    _thread.start_new_thread(_end_those_that_wait, (response_class,))


class _Stream:
    """An event stream."""

    def __init__(self):
        self.lock = _thread.allocate_lock()
        self.tail = b""
        self.is_ended = False
        self.ends_at = _ends_at + SPREAD * (next(_numbers) % BATCHES) / BATCHES

    def write(self, original, response, data):
        with self.lock:
            if not self.is_ended:
                end = end_of_last_event(self.tail, data) if time.monotonic() >= self.ends_at else None
                original(response, data if end is None else data[:end])
                if end is None:
                    self.tail = (self.tail + data)[-4:]
                    return
                self.end(response)
        # The worker closes the generator, and logs nothing.
        raise BrokenPipeError(32, "the server restarts, and the stream was ended")

    def end(self, response):
        self.is_ended = True
        response.close()

    def end_if_it_waits(self, response):
        if not self.lock.acquire(False):
            # It is writing.
            return
        try:
            if not self.is_ended and time.monotonic() >= self.ends_at and is_between_events(self.tail):
                self.end(response)
        except OSError:
            # The client has disconnected.
            pass
        finally:
            self.lock.release()


def _stream_of(response):
    """The stream that a response is. None: it is another response."""
    try:
        return response._supervise_stream
    except AttributeError:
        pass
    headers = getattr(response, "headers", ())
    is_stream = any(
        name.lower() == "content-type" and value.lower().startswith("text/event-stream") for name, value in headers
    )
    # Two threads may come here: setdefault() is one step.
    return vars(response).setdefault("_supervise_stream", _Stream() if is_stream else None)


def _end_those_that_wait(response_class):
    try:
        time.sleep(max(_ends_at - time.monotonic(), 0))
        end = time.monotonic() + AFTER
        while time.monotonic() < end:
            for response in _responses(response_class):
                stream = _stream_of(response)
                if stream is not None and response.headers_sent:
                    stream.end_if_it_waits(response)
            time.sleep(LOOK)
    except Exception:
        page.swallowed()


def _responses(response_class):
    """The responses that are being sent, by the local variables of gunicorn's functions."""
    found = []
    for frame in sys._current_frames().values():
        while frame is not None:
            if frame.f_code.co_name == "handle_request":
                response = frame.f_locals.get("resp")
                if isinstance(response, response_class):
                    found.append(response)
            frame = frame.f_back
    return found
