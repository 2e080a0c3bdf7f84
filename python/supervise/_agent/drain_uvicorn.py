"""The drain of uvicorn, alone, with --workers and in gunicorn's UvicornWorker.

Both of its HTTP/1 protocols take their default headers from the server's state for each request, and
close the connection after an answer with `Connection: close`; so that is where it is said.
"""

import asyncio
import time

from . import drain, page

CLOSE = (b"connection", b"close")


def server(module):
    original = module.Server.shutdown

    async def shutdown(self, sockets=None):
        try:
            await _drain(self, sockets)
        except Exception:
            page.swallowed()
        return await original(self, sockets)

    module.Server.shutdown = shutdown
    drain.installed()


def config(module):
    """Where uvicorn binds the listener that its workers share, if it was not given one."""
    original = module.Config.bind_socket

    def bind_socket(self):
        sock = original(self)
        try:
            if self.fd is None:
                drain.bound(sock.fileno())
        except Exception:
            page.swallowed()
        return sock

    module.Config.bind_socket = bind_socket


def parent(module):
    """The parent of --workers holds the listeners: when all workers stop, nobody may join their queue."""
    original = module.Multiprocess.terminate_all

    def terminate_all(self):
        try:
            workers = {worker.process.pid for worker in self.processes}
            for sock in self.sockets:
                drain.deafen(sock.fileno(), workers)
        except Exception:
            page.swallowed()
        return original(self)

    module.Multiprocess.terminate_all = terminate_all


async def _drain(server, sockets):
    drain.begin()
    end = time.monotonic() + drain.LINGER
    state = server.server_state
    _say_close(state)
    if sockets is None and server.config.fd is None:
        for listener in server.servers:
            for sock in listener.sockets or ():
                # uvicorn has bound it in this process, when it started to serve.
                drain.bound(sock.fileno())
                drain.deafen(sock.fileno())
    # The loop goes on accepting meanwhile, so what is in the queue comes in.
    await asyncio.sleep(drain.SETTLE)
    for listener in server.servers:
        listener.close()
    seen = set()
    while time.monotonic() < end and not server.force_exit:
        # A websocket has no next request to wait for; it ends as uvicorn ends it.
        waiting = [c for c in state.connections if hasattr(c, "cycle")]
        seen.update(waiting)
        if not waiting:
            break
        await asyncio.sleep(drain.TICK)
    drain.told(sum(1 for c in seen.difference(state.connections) if _was_told(c)))


def _say_close(state):
    state.default_headers = state.default_headers + [CLOSE]
    for connection in state.connections:
        cycle = getattr(connection, "cycle", None)
        if cycle is not None and not cycle.response_started:
            cycle.default_headers = cycle.default_headers + [CLOSE]


def _was_told(connection):
    cycle = connection.cycle
    return cycle is not None and cycle.response_complete and CLOSE in cycle.default_headers
