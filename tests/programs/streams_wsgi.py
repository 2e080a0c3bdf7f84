"""A WSGI service with event streams and uploads, like `streams.py`. It writes a line to stdout when a generator is
closed."""

import itertools
import os
import threading
import time

# The time between two events.
EVERY = 0.2


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path in ("/events", "/silent"):
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return events(path == "/silent")
    if path == "/download":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return download()
    if environ["REQUEST_METHOD"] == "POST":
        body = b"received:%d\n" % len(environ["wsgi.input"].read())
    else:
        body = b"ok:%d\n" % os.getpid()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def events(is_silent):
    """Each event is sent in two parts."""
    try:
        for number in itertools.count():
            yield b"id: %d\n" % number
            yield b"data: %d\n\n" % os.getpid()
            # A silent stream waits for its next event longer than any test.
            threading.Event().wait(3600 if is_silent else EVERY)
    finally:
        print("an event stream was closed", flush=True)


def download():
    for number in range(100):
        yield b"%d\n" % number
        time.sleep(0.05)
    yield b"end:%d\n" % os.getpid()
