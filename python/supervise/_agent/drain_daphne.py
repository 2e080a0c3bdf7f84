"""The drain of daphne. Before its reactor stops, daphne cancels all running applications and closes all connections.

With the drain, it first stops accepting, finishes its answers, and gives its clients the linger. After that, websockets
are closed.
"""

import time

from . import drain, page, servers

# Checks in a row that must find nothing to wait for.
QUIET = 3

_draining = False

# The listening ports of twisted. daphne itself keeps none of them.
_ports = []


def server(module):
    original = module.Server.kill_all_applications

    def kill_all_applications(self):
        # The reactor calls this before it stops, and waits for the deferred that it returns.
        drained = module.defer.Deferred()
        drained.addBoth(lambda _: original(self))
        try:
            _begin(self, module.reactor, drained)
        except Exception:
            page.swallowed()
            drained.callback(None)
        return drained

    servers.before(module.Server, "listen_success", lambda server, port: _ports.append(port))
    module.Server.kill_all_applications = kill_all_applications
    drain.installed()


def protocol(module):
    original = module.WebRequest.handle_reply

    def handle_reply(self, message):
        if _draining and message.get("type") == "http.response.start":
            try:
                self.responseHeaders.setRawHeaders(b"Connection", [b"close"])
                # The channel then closes the connection after the answer.
                self.channel.persistent = False
                drain.count_closed()
            except Exception:
                page.swallowed()
        return original(self, message)

    module.WebRequest.handle_reply = handle_reply


def _begin(server, reactor, drained):
    global _draining
    from twisted.internet import tcp

    _draining = True
    drain.begin()
    end = time.monotonic() + drain.LINGER

    def close_listeners():
        for port in _ports:
            port.stopListening()

    def is_any(transports):
        return any(isinstance(it, tcp.Server) for it in transports)

    def check(quiet=0):
        try:
            lingers = time.monotonic() < end and is_any(reactor.getReaders())
            # An application may be done before its answer is sent.
            sends = is_any(reactor.getWriters())
            waits = lingers or sends or any(map(_is_answering, list(server.connections.items())))
        except Exception:
            page.swallowed()
            waits = False
        # RACE: twisted reads no more from a connection while it answers, so for a moment between two callbacks a
        # connection may look idle.
        quiet = 0 if waits else quiet + 1
        if quiet < QUIET:
            reactor.callLater(drain.TICK, check, quiet)
        else:
            drained.callback(None)

    # Meanwhile the reactor accepts the connections in the queue.
    reactor.callLater(drain.SETTLE, close_listeners)
    reactor.callLater(drain.SETTLE + drain.TICK, check)


def _is_answering(connection):
    """Whether the application answers a request. An application that serves a websocket does not count."""
    protocol, details = connection
    application = details.get("application_instance")
    is_http = hasattr(protocol, "responseHeaders") and "disconnected" not in details
    return is_http and application is not None and not application.done()
