"""The drain of hypercorn with asyncio and uvloop. With trio, hypercorn's own shutdown is not changed.

hypercorn stops all its workers at once, and its parent holds the listeners until the end. If a worker stopped
accepting early, the queue would grow and then be reset. So a worker accepts until the linger is over. After SIGHUP the
listeners serve new workers, so new connections are dropped only if hypercorn runs without workers.

One of several workers leaves at TERM, as after `max_requests`, and its parent starts another one. By itself, a worker
dies from TERM, and its parent then stops all others. The other workers, or the next one, accept from the queue.
"""

import asyncio
import os
import signal
import time

from . import drain, page, protocol, streams

# Seconds.
LONG = 86400.0

# hypercorn's own `graceful_timeout`, in seconds, unless it is configured.
DEFAULT_TIMEOUT = 3.0

# Turns of the event loop from the accept of a connection to its task, with some to spare.
TURNS = 10

# Has an entry when this worker leaves, and the others stay.
_leaves = []


def config(module):
    """Hooks the function with which hypercorn binds its listeners: in the parent, or in the only process."""
    original = module.Config._create_sockets

    def _create_sockets(self, binds, *args, **kwargs):
        sockets = original(self, binds, *args, **kwargs)
        try:
            for bind, sock in zip(binds, sockets):
                if not bind.startswith("fd://"):
                    drain.bound(sock.fileno())
        except Exception:
            page.swallowed()
        return sockets

    module.Config._create_sockets = _create_sockets


def worker(module):
    original = module.worker_serve
    raise_shutdown = module.raise_shutdown
    frames = []

    async def worker_serve(app, config, *, sockets=None, shutdown_trigger=None):
        serving = original(app, config, sockets=sockets, shutdown_trigger=shutdown_trigger)
        # The drain needs local variables of hypercorn's function.
        frames.append(serving.cr_frame)
        if shutdown_trigger is not None:
            try:
                _leave_at_term(frames[-1])
            except Exception:
                page.swallowed()
        return await serving

    async def lingering_shutdown(trigger):
        _report_service()
        try:
            await raise_shutdown(trigger)
        except module.ShutdownError:
            try:
                if frames and not page.slot[protocol.DRAIN]:
                    await _drain(frames[-1].f_locals)
            except Exception:
                page.swallowed()
            raise

    module.worker_serve = worker_serve
    module.raise_shutdown = lingering_shutdown
    streams.install()
    drain.installed()


def _report_service():
    # hypercorn waits for its shutdown only when the application has started.
    try:
        if page.slot[protocol.SERVES] == 0:
            page.serves(os.getppid())
    except Exception:
        page.swallowed()


def _leave_at_term(frame):
    loop = asyncio.get_running_loop()

    def leave():
        context = frame.f_locals.get("context")
        if context is None:
            # It boots, and ends as it would by itself.
            loop.remove_signal_handler(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        _leaves.append(True)
        # The supervisor limits the time, and not hypercorn.
        frame.f_locals["config"].graceful_timeout = LONG
        asyncio.ensure_future(context.terminate.set())

    loop.add_signal_handler(signal.SIGTERM, leave)


async def _drain(serve):
    config, sockets, tasks = serve["config"], serve["sockets"], serve["server_tasks"]
    drain.begin()
    if serve["shutdown_trigger"].__class__.__name__ == "partial":
        # When the first worker exits, the parent sends TERM to the others, which are stopping already.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # hypercorn closes a connection after this many requests, with `Connection: close`.
    config.keep_alive_max_requests = 0
    begun = time.monotonic()
    end = begun + drain.LINGER
    alone = config.workers == 0
    if alone and config.graceful_timeout == DEFAULT_TIMEOUT:
        # A request that takes longer would be cut. The supervisor limits the time.
        config.graceful_timeout = LONG
    if not alone and not _leaves:
        await _until_idle(tasks, end)
    for sock in _listeners(sockets):
        drain.drop_new_connections(sock.fileno())
    await asyncio.sleep(drain.SETTLE)
    for server in serve["servers"]:
        server.close()
    # RACE: a connection that was accepted just before has no task yet. It has one after a few turns of the loop.
    for _ in range(TURNS):
        await asyncio.sleep(0)
    await asyncio.sleep(drain.TICK)
    await _until_idle(tasks, max(end, time.monotonic() + drain.SETTLE))
    lingers = await streams.drain(begun)
    await _until_idle(tasks, time.monotonic() + lingers)


async def _until_idle(tasks, end):
    while tasks and time.monotonic() < end:
        before = set(tasks)
        await asyncio.sleep(drain.TICK)
        drain.count_closed(len(before.difference(tasks)))


def _listeners(sockets):
    return [*sockets.secure_sockets, *sockets.insecure_sockets]
