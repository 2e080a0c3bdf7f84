"""The drain of uvicorn: as one process, with --workers, and in gunicorn's UvicornWorker.

Both HTTP/1 protocols of uvicorn read their default headers from the server's state for each request, and close the
connection after an answer with `Connection: close`. So the drain adds the header to the default headers.
"""

import asyncio
import time

from . import drain, page, serving, stream_grace, streams

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
    streams.install()
    drain.installed()


def config(module):
    """Hooks the function with which uvicorn binds the listener of its workers, if it was not given one."""
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
    """The parent of --workers holds the listeners. When all workers stop, no new connection may enter the queue."""
    original = module.Multiprocess.terminate_all

    def terminate_all(self):
        try:
            workers = {worker.process.pid for worker in self.processes}
            for sock in self.sockets:
                drain.drop_new_connections(sock.fileno(), workers)
        except Exception:
            page.swallowed()
        return original(self)

    module.Multiprocess.terminate_all = terminate_all


async def _drain(server, sockets):
    drain.begin()
    begun = time.monotonic()
    end = begun + drain.LINGER
    state = server.server_state
    _announce_close(state)
    if sockets is None and server.config.fd is None:
        for listener in server.servers:
            for sock in listener.sockets or ():
                # uvicorn bound this listener in this process, when it started to serve.
                drain.bound(sock.fileno())
                drain.drop_new_connections(sock.fileno())
    # Meanwhile the loop accepts the connections in the queue.
    await asyncio.sleep(drain.SETTLE)
    for listener in server.servers:
        listener.close()
    seen = set()
    while time.monotonic() < end and not server.force_exit:
        # A websocket has no next request to wait for.
        waiting = [c for c in state.connections if hasattr(c, "cycle")]
        seen.update(waiting)
        if not waiting:
            break
        await asyncio.sleep(drain.TICK)
    # gunicorn's worker sends no heartbeat during the shutdown.
    lingers = await streams.drain(
        begun, beat=serving.beat, is_aborted=lambda: server.force_exit, limit=_time_limit(server)
    )
    end = time.monotonic() + lingers
    while time.monotonic() < end and state.connections and not server.force_exit:
        await asyncio.sleep(drain.TICK)
    drain.count_closed(sum(1 for c in seen.difference(state.connections) if _got_close_header(c)))


def _time_limit(server):
    """The time that the servers themselves leave to streams."""
    limits = [stream_grace.GRACE]
    if server.config.timeout_graceful_shutdown is not None:
        limits.append(server.config.timeout_graceful_shutdown)
    if serving.worker is not None:
        # When gunicorn stops, its master kills the workers at the end of this time.
        limits.append(serving.worker.cfg.graceful_timeout - stream_grace.AFTER)
    return min(limits)


def _announce_close(state):
    state.default_headers = state.default_headers + [CLOSE]
    for connection in state.connections:
        cycle = getattr(connection, "cycle", None)
        if cycle is not None and not cycle.response_started:
            cycle.default_headers = cycle.default_headers + [CLOSE]


def _got_close_header(connection):
    cycle = connection.cycle
    return cycle is not None and cycle.response_complete and CLOSE in cycle.default_headers
