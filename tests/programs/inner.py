"""A web application that needs its own inner socket to answer.

`/inner` waits until the file REFUSED exists, then connects to an inner server. The process that imports this module
starts that server. The environment variable INNER says which: `process` is a helper process and `thread` a thread, both
listening on loopback. `manager` is a multiprocessing manager, also on loopback, because root may connect to a Unix
socket of any mode.
"""

import asyncio
import multiprocessing.managers
import os
import signal
import socket
import threading
import time

LONGEST_S, TICK_S = 15, 0.05

_context = multiprocessing.get_context("fork")
_kind = os.environ["INNER"]


def _serve_alone(listener):
    # Do not inherit the SIGTERM handler of the server.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _serve(listener)


def _serve(listener):
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"fine\n")


if _kind == "manager":
    _manager = multiprocessing.managers.SyncManager(("127.0.0.1", 0), ctx=_context)
    _manager.start()
    _shared = _manager.dict(word="fine\n")
else:
    _listener = socket.create_server(("127.0.0.1", 0))
    _address = _listener.getsockname()
    if _kind == "thread":
        threading.Thread(target=_serve, args=(_listener,), daemon=True).start()
    else:
        _context.Process(target=_serve_alone, args=(_listener,), daemon=True).start()
        _listener.close()


def _ask():
    if _kind == "manager":
        # Each thread has its own connection.
        return dict(_shared)["word"]
    with socket.create_connection(_address, 5) as connection:
        return connection.makefile().readline()


def _wait_for(file):
    until = time.monotonic() + LONGEST_S
    while not os.path.exists(file):
        assert time.monotonic() < until, "%s was not created" % file
        time.sleep(TICK_S)


def _answer(path):
    try:
        if path == "/inner":
            with open(os.path.expanduser("~/begun"), "a") as begun:
                begun.write("x\n")
            _wait_for(os.environ["REFUSED"])
            assert _ask() == "fine\n"
        return 200, b"ok:%d\n" % os.getpid()
    except Exception as error:
        return 502, repr(error).encode()


def wsgi(environ, start_response):
    status, body = _answer(environ["PATH_INFO"])
    start_response("%d it" % status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    status, body = await asyncio.to_thread(_answer, scope["path"])
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
