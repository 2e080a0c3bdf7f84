"""The server in this process: what it does, and what it waits for."""

import sys

from . import protocol

# The part of the time between two heartbeats that a report may take: a server kills a worker without a heartbeat.
HEARTBEAT_PART = 0.8

# Clients do not notice an interruption of less than this many seconds.
BRIEF = 0.005

# The worker of gunicorn, and the server of uvicorn, that this process runs. A UvicornWorker has both.
worker = None
server = None


def is_busy():
    """Whether a counted request is in progress."""
    # A process that counts nothing, such as the worker of a pool, has no page.
    page = sys.modules.get(__package__ + ".page")
    return page is not None and page.slot[protocol.STARTED] > page.slot[protocol.FINISHED]


def has_connections():
    """Whether a client of a server that is known has a connection open, and may send a request at any time."""
    if server is not None:
        return len(server.server_state.connections) > 0
    return getattr(worker, "nr_conns", 0) > 0


def is_quiet(seconds):
    """Whether no client waits if this process is interrupted for this time: no request is in progress, and either none
    can come on an open connection, or the interruption is short."""
    return not is_busy() and (seconds < BRIEF or not has_connections())


def may_pause():
    """Whether this process may stay without accepting for a while. With reuse_port, connections wait in a queue that
    no other worker empties. If a request is still in progress, the server has given it up and is late already."""
    return not is_busy() and not (worker is not None and worker.cfg.reuse_port)


def beat():
    """Sends a heartbeat, if the server wants one. Returns the seconds until the next one is due, or None."""
    if worker is None:
        return None
    worker.notify()
    # gunicorn has halved its timeout here. 0 is no timeout.
    return worker.timeout * HEARTBEAT_PART or None
