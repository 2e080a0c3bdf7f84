"""Event streams and WebSockets are ended when their server drains, and other answers are not.

    python test_streams.py PACKAGE        PACKAGE is the folder that holds the package of the agent
"""

import asyncio
import os
import sys
import tempfile
import time
import types
import unittest

PACKAGE = sys.argv.pop(1)
sys.path.insert(0, PACKAGE)

from _agent import protocol  # noqa: E402

HOME = tempfile.TemporaryDirectory()
os.environ["SUPERVISE_AGENT"] = HOME.name
os.environ["SUPERVISE_AGENT_DRAIN"] = "0.05"
os.environ["SUPERVISE_AGENT_STREAMS"] = "0.2 1.2"
with open(HOME.name + "/page", "wb") as file:
    header = protocol.words(bytearray(protocol.SLOT_BYTES))
    header[protocol.MAGIC] = protocol.MAGIC_NUMBER
    header[protocol.SLOTS] = 2
    header[protocol.SLOT_LENGTH] = protocol.SLOT_BYTES
    file.write(header)
    file.truncate(8 * protocol.FIRST_AREA)

from _agent import counting, page, streams, streams_wsgi  # noqa: E402

streams.install()

EVENTS = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"Content-Type", b"text/event-stream")],
}
TEXT = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
LAST = {"type": "http.response.body", "body": b"", "more_body": False}


def part(body):
    return {"type": "http.response.body", "body": body, "more_body": True}


class Server:
    """Runs one application, and keeps what it has sent."""

    def __init__(self, app, kind="http", version="2.3"):
        self.sent = []
        self.is_writable = asyncio.Event()
        self.is_writable.set()
        self.disconnect = asyncio.Event()
        scope = {"type": kind, "path": "/", "asgi": {"version": "3.0", "spec_version": version}}
        self.task = asyncio.ensure_future(counting.asgi(app)(scope, self.receive, self.send))

    async def receive(self):
        await self.disconnect.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        # Unlike real servers it sends the end, which has no body, before a body that waits.
        if message.get("body"):
            await self.is_writable.wait()
        self.sent.append(message)
        if message["type"] == "websocket.close" or message.get("more_body") is False:
            self.disconnect.set()

    def body(self):
        return b"".join(message.get("body", b"") for message in self.sent)


async def events(receive, send):
    """Sends events in two parts until the client has disconnected."""
    await send(EVENTS)
    gone = asyncio.ensure_future(receive())
    while not gone.done():
        await send(part(b"data: "))
        await asyncio.sleep(0.03)
        await send(part(b"a\n\nda"))
        await send(part(b"ta: b\r\n\r\n"))


async def drain():
    begun = time.monotonic()
    lingers = await streams.drain(begun)
    return time.monotonic() - begun, lingers


class Streams(unittest.IsolatedAsyncioTestCase):
    def setUp(self):
        streams._is_late = False
        self.errors = page.slot[protocol.ERRORS]

    def tearDown(self):
        self.assertEqual(page.slot[protocol.ERRORS], self.errors)
        self.assertEqual(streams._open, set())

    async def test_an_event_stream_has_its_time_and_ends_after_a_whole_event(self):
        async def app(scope, receive, send):
            await events(receive, send)

        server = Server(app)
        await asyncio.sleep(0.01)
        took, lingers = await drain()
        self.assertTrue(streams.GRACE <= took < 1, took)
        self.assertEqual(lingers, 0.05)
        self.assertIsNone(await server.task)
        self.assertTrue(server.body().endswith((b"a\n\n", b"b\r\n\r\n")), server.sent)
        ends = [message for message in server.sent if message.get("more_body") is False]
        self.assertEqual(ends, server.sent[-1:])

    async def test_a_websocket_is_closed_with_the_code_of_a_restart(self):
        async def app(scope, receive, send):
            await send({"type": "websocket.accept"})
            await receive()
            try:
                # The server would refuse this.
                await send({"type": "websocket.send", "text": "a"})
            except OSError as error:
                raised.append(error)

        raised = []
        server = Server(app, "websocket", "2.4")
        await asyncio.sleep(0)
        await drain()
        await server.task
        self.assertEqual(raised, [])
        self.assertEqual(server.sent[1:], [{"type": "websocket.close", "code": 1012, "reason": ""}])

    async def test_a_download_is_not_ended_and_not_waited_for(self):
        finish = asyncio.Event()

        async def app(scope, receive, send):
            await send(TEXT)
            await send(part(b"a"))
            await finish.wait()
            await send(LAST)

        server = Server(app)
        await asyncio.sleep(0)
        took, lingers = await drain()
        self.assertTrue(took < streams.GRACE and lingers == 0, took)
        self.assertEqual(server.sent, [TEXT, part(b"a")])
        finish.set()
        await server.task
        self.assertEqual(server.sent[-1], LAST)

    async def test_the_end_does_not_overtake_a_message_that_waits_for_the_client(self):
        async def app(scope, receive, send):
            await send(EVENTS)
            await send(part(b"data: a\n\n"))
            await receive()

        server = Server(app)
        server.is_writable.clear()
        draining = asyncio.ensure_future(drain())
        await asyncio.sleep(streams.GRACE + 0.2)
        self.assertEqual(server.sent, [EVENTS])
        server.is_writable.set()
        await draining
        await server.task
        self.assertEqual(server.sent, [EVENTS, part(b"data: a\n\n"), LAST])

    async def test_an_application_that_sends_more_gets_an_error_that_its_server_does_not_see(self):
        raised = []

        async def app(scope, receive, send):
            await send(EVENTS)
            try:
                while True:
                    await send(part(b"data: a\n\n"))
                    await asyncio.sleep(0.005)
            except OSError as error:
                raised.append(error)
                raise

        for version in ("2.3", "2.4"):
            streams._is_late = False
            server = Server(app, version=version)
            await asyncio.sleep(0)
            took, _ = await drain()
            self.assertIsNone(await server.task)
            # In the older version it is ignored first, and the application is cancelled.
            self.assertEqual(len(raised), version == "2.4")
            self.assertTrue(server.body().endswith(b"\n\n"))

    async def test_an_application_that_does_not_return_is_cancelled(self):
        async def app(scope, receive, send):
            await send(EVENTS)
            await asyncio.Event().wait()

        server = Server(app)
        await asyncio.sleep(0)
        await drain()
        self.assertTrue(server.task.done())
        self.assertIsNone(server.task.result())
        self.assertEqual(server.sent, [EVENTS, LAST])

    async def test_an_application_that_works_on_after_its_stream_is_not_cancelled(self):
        finish = asyncio.Event()

        async def app(scope, receive, send):
            await send(EVENTS)
            await send(LAST)
            await finish.wait()
            return "done"

        server = Server(app)
        await asyncio.sleep(0)
        await drain()
        self.assertFalse(server.task.done())
        finish.set()
        self.assertEqual(await server.task, "done")
        self.assertEqual(server.sent, [EVENTS, LAST])

    async def test_a_stream_that_begins_after_the_time_ends_at_once(self):
        await drain()

        async def app(scope, receive, send):
            await asyncio.sleep(0.3)
            await events(receive, send)

        server = Server(app)
        await drain()
        await asyncio.wait_for(server.task, 1)
        self.assertEqual(server.sent, [EVENTS, LAST])

    async def test_errors_of_the_application_reach_the_server(self):
        async def app(scope, receive, send):
            await send(EVENTS)
            raise KeyError("a")

        server = Server(app)
        with self.assertRaises(KeyError):
            await server.task


class Response:
    """A response of gunicorn."""

    headers = [("Content-Type", "text/event-stream")]

    def write(self, data):
        raise NotImplementedError


class Stopping:
    """A worker that gets a second TERM while it handles the first."""

    @property
    def cfg(self):
        streams_wsgi._begin(self)
        return types.SimpleNamespace(graceful_timeout=30)


class WsgiStreams(unittest.TestCase):
    def test_a_second_term_does_not_wrap_the_responses_twice(self):
        original = Response.write
        sys.modules["gunicorn.http.wsgi"] = types.SimpleNamespace(Response=Response)
        streams_wsgi._begin(Stopping())
        wrapped = [cell.cell_contents for cell in Response.write.__closure__]
        self.assertEqual(wrapped, [original])


if __name__ == "__main__":
    unittest.main()
