"""The drain of waitress. waitress does not handle TERM, which would kill it while it answers requests.

With the drain, waitress finishes its answers after TERM and then kills itself with the same signal.
"""

import os
import signal
import sys
import threading
import time

from . import drain, page

# Additional seconds for requests that are being answered. Idle connections are closed after LINGER.
GRACE = 30

_until = None


def server(module):
    for owner in (module.BaseWSGIServer, module.MultiSocketServer):
        owner.run = _draining(owner.run)
    base = module.BaseWSGIServer
    readable = base.readable

    def readable_or_done(self):
        # waitress calls this for each listener in each turn of its loop.
        if _until is not None:
            try:
                _turn(self, module)
            except Exception:
                page.swallowed()
                raise SystemExit from None
        return readable(self)

    base.readable = readable_or_done
    initialise = base.__init__

    def __init__(self, *args, **kwargs):
        initialise(self, *args, **kwargs)
        try:
            if not self.adj.sockets:
                drain.bound(self.socket.fileno())
        except Exception:
            page.swallowed()

    base.__init__ = __init__
    drain.installed()


def _draining(run):
    def draining_run(self):
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        ):
            return run(self)
        signal.signal(signal.SIGTERM, lambda signum, frame: _stop(self))
        result = run(self)
        if _until is not None:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except Exception:
                    pass
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    draining_run.__wrapped__ = run
    return draining_run


def _stop(server):
    global _until
    # A second TERM kills the process, as without the drain.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _until = time.monotonic() + drain.LINGER
    try:
        drain.begin()
        _announce_close()
        for listener in _listeners(server):
            if not listener.adj.sockets:
                drain.drop_new_connections(listener.socket.fileno())
        # This wakes the loop, which may sleep for a second.
        _listeners(server)[0].pull_trigger()
    except Exception:
        page.swallowed()


def _listeners(server):
    the_map = getattr(server, "_map", None) or server.map
    return [d for d in the_map.values() if hasattr(d, "active_channels")]


def _announce_close():
    from waitress.task import Task

    build = Task.build_response_header

    def build_response_header(self):
        self.request.headers["CONNECTION"] = "close"
        drain.count_closed()
        return build(self)

    Task.build_response_header = build_response_header


def _turn(server, module):
    """Accepts the connections in the queue. Then ends the loop when no connection is open, or the rest is idle."""
    if server.accepting:
        if not server.adj.sockets:
            before = -1
            while before != len(server.active_channels):
                before = len(server.active_channels)
                server.handle_accept()
        server.accepting = False
    now = time.monotonic()
    channels = [c for s in _listeners(server) for c in s.active_channels.values()]
    if any(s.accepting for s in _listeners(server)):
        return
    busy = any(c.requests or c.total_outbufs_len for c in channels)
    if not channels or now > _until + GRACE or (now > _until and not busy):
        # waitress ends its loop at SystemExit.
        raise SystemExit
