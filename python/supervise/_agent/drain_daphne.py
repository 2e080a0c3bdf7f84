"""The drain of daphne. Before its reactor stops, daphne cancels all running applications and closes all connections.

With the drain, it first stops accepting, finishes its answers, and gives its clients the linger. Event streams and
WebSockets are ended after their time.
"""

import asyncio
import time

from . import drain, page, servers, streams

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
    streams.install()
    drain.installed()


def websocket(module):
    original = module.WebSocketProtocol.serverClose

    def serverClose(self, code=None):
        if code == streams.RESTART:
            # sendClose() refuses the codes that are not the application's own.
            return self.sendCloseFrame(code=code, isReply=False)
        return original(self, code)

    module.WebSocketProtocol.serverClose = serverClose


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
    begun = time.monotonic()
    end = begun + drain.LINGER
    ending = asyncio.ensure_future(_end_streams(server, begun))

    def close_listeners():
        for port in _ports:
            port.stopListening()

    def is_any(transports):
        return any(isinstance(it, tcp.Server) for it in transports)

    def check(quiet=0):
        try:
            until = max(end, ending.result()) if ending.done() else end
            lingers = not ending.done() or time.monotonic() < until and is_any(reactor.getReaders())
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


async def _end_streams(server, begun):
    """Returns the moment until which the clients of streams can close their connections."""
    try:
        await asyncio.sleep(drain.SETTLE)
        while time.monotonic() < begun + drain.LINGER and server.connections:
            await asyncio.sleep(drain.TICK)
        return time.monotonic() + await streams.drain(begun)
    except Exception:
        page.swallowed()
        return begun


def _is_answering(connection):
    """Whether the application answers a request. An application that serves a websocket does not count."""
    protocol, details = connection
    application = details.get("application_instance")
    is_http = hasattr(protocol, "responseHeaders") and "disconnected" not in details
    return is_http and application is not None and not application.done()
