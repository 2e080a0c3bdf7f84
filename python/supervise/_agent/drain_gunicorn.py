"""The drains of gunicorn's asgi worker class, and of its gthread class before version 24.

The sync class has no kept-alive connections. gevent, and gthread from version 24 on, drain without loss themselves.
"""

import asyncio
import sys
import time

from . import drain, page, stream_grace, streams


def asgi(module):
    """After TERM, answers get `Connection: close`. `alive` stays true until the end of the linger (`drain.LINGER`): a
    worker that is not alive closes connections without that header."""
    worker_class = module.ASGIWorker
    protocol = module.ASGIProtocol
    stop = worker_class.handle_exit_signal
    will_close = protocol._will_close
    draining = []

    def handle_exit_signal(self):
        if draining:
            # The master repeats TERM each second. The drain has begun, and ends by itself.
            return
        if not self.alive:
            return stop(self)
        try:
            drain.begin()
            draining.append(self.loop.create_task(_linger(self, stop)))
        except Exception:
            page.swallowed()
            stop(self)

    def _will_close(self, request, response_requires_close):
        if not draining:
            return will_close(self, request, response_requires_close)
        if getattr(self, "_supervise_ended_stream", False):
            return True
        # gunicorn asks before it sends the head of an answer, and may ask again after the answer, in
        # keepalive_after_response(). The head can no longer change then: close only if it announced that, or if
        # gunicorn itself would.
        caller = sys._getframe(1)
        if caller.f_code.co_name != "keepalive_after_response":
            drain.count_closed()
            return True
        announced = caller.f_locals.get("close_announced")
        return announced or will_close(self, request, response_requires_close)

    worker_class.handle_exit_signal = handle_exit_signal
    protocol._will_close = _will_close
    streams.before_end, streams.after_end = _close_after_stream, _disconnect
    streams.install()
    drain.installed()


def _close_after_stream(receive):
    """The connection of an event stream that was ended serves no other request."""
    protocol = getattr(getattr(receive, "__self__", None), "protocol", None)
    if protocol is not None:
        protocol._supervise_ended_stream = True


def _disconnect(receive):
    """gunicorn tells an application only of the end of the connection, and not of the end of its answer."""
    signal = getattr(getattr(receive, "__self__", None), "signal_disconnect", None)
    if signal is not None:
        signal()


async def _linger(worker, stop):
    try:
        begun = time.monotonic()
        end = begun + drain.LINGER
        await asyncio.sleep(drain.SETTLE)
        for server in worker.servers:
            server.close()
        while worker.alive and worker.nr_conns > 0 and time.monotonic() < end:
            await asyncio.sleep(drain.TICK)
        # Until then `alive` is true, and gunicorn sends heartbeats. When the whole server stops, its master kills the
        # workers at the end of its graceful timeout.
        limit = worker.cfg.graceful_timeout - stream_grace.AFTER
        await streams.drain(begun, is_aborted=lambda: not worker.alive, limit=limit)
    except Exception:
        page.swallowed()
    finally:
        stop(worker)


def gthread(module):
    import gunicorn

    if gunicorn.version_info >= (24,):
        return
    worker_class = module.ThreadWorker
    run, finish_request, handle_quit = (
        worker_class.run,
        worker_class.finish_request,
        worker_class.handle_quit,
    )

    def draining_run(self):
        # gunicorn shuts the thread pool down directly after its loop. The poller is still open then, so the drain runs
        # there.
        shutdown = self.tpool.shutdown

        def drain_and_shutdown(*args, **kwargs):
            self.tpool.shutdown = shutdown
            try:
                _serve_open_connections(self, module.futures)
            except Exception:
                page.swallowed()
            finally:
                self._supervise_drained = True
            return shutdown(*args, **kwargs)

        self.tpool.shutdown = drain_and_shutdown
        return run(self)

    def quit_at_once(self, sig, frame):
        self.tpool.__dict__.pop("shutdown", None)
        self._supervise_drained = True
        return handle_quit(self, sig, frame)

    def finish(self, fs):
        # An answer without `Connection: close` may end after TERM. Its connection stays open.
        try:
            if not (self.alive or fs.cancelled() or getattr(self, "_supervise_drained", False)):
                keepalive, conn = fs.result()
                if keepalive:
                    return _keep(self, module, conn)
        except Exception:
            pass
        return finish_request(self, fs)

    worker_class.run = draining_run
    worker_class.finish_request = finish
    worker_class.handle_quit = quit_at_once
    drain.installed()


def _keep(worker, module, conn):
    conn.sock.setblocking(False)
    conn.set_timeout()
    readable = getattr(worker, "on_client_socket_readable", None) or worker.reuse_connection
    with worker._lock:
        worker._keep.append(conn)
        worker.poller.register(
            conn.sock, module.selectors.EVENT_READ, module.partial(readable, conn)
        )


def _serve_open_connections(worker, futures):
    """Runs the worker's loop without its listeners, until no connection is open or the linger is over.

    `alive` is false, so gunicorn itself adds `Connection: close` to every answer.
    """
    drain.begin()
    worker.alive = False
    # Every answer from here on has `Connection: close`. The clients have closed the other connections.
    before = worker.nr_conns
    for sock in worker.sockets:
        worker.poller.unregister(sock)
    end = time.monotonic() + drain.LINGER
    while worker.nr_conns > 0 and time.monotonic() < end:
        worker.notify()
        for key, _ in worker.poller.select(drain.TICK):
            key.data(key.fileobj)
        for done in futures.wait(worker.futures, timeout=0).done:
            worker.futures.remove(done)
    drain.count_closed(max(before - worker.nr_conns, 0))
