"""An ASGI service with event streams, WebSockets and uploads. It writes a line to stdout when a handler learns that its
client is told to leave."""

import asyncio
import itertools
import os

from leaky_asgi import lifespan

PID = os.getpid()

# The time between two events.
EVERY = 0.2


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await echo(receive, send)
    elif scope["path"] == "/events":
        await listened(receive, events(send))
    elif scope["path"] == "/events-without-receive":
        await events(send)
    elif scope["path"] == "/silent":
        await start(send, [(b"content-type", b"text/event-stream")])
        await send({"type": "http.response.body", "body": b"data: %d\n\n" % PID, "more_body": True})
        await asyncio.Event().wait()
    elif scope["path"] == "/download":
        await start(send, [(b"content-type", b"text/plain")])
        for number in range(100):
            await send({"type": "http.response.body", "body": b"%d\n" % number, "more_body": True})
            await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"end:%d\n" % PID})
    else:
        length = 0
        while True:
            message = await receive()
            length += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        body = b"ok:%d\n" % PID if scope["method"] == "GET" else b"received:%d\n" % length
        await start(send, [(b"content-length", b"%d" % len(body))])
        await send({"type": "http.response.body", "body": body})


async def start(send, headers):
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def events(send):
    """Each event is sent in two parts."""
    await start(send, [(b"content-type", b"text/event-stream; charset=utf-8")])
    for number in itertools.count():
        await send({"type": "http.response.body", "body": b"id: %d\n" % number, "more_body": True})
        await asyncio.sleep(EVERY / 2)
        await send({"type": "http.response.body", "body": b"data: %d\n\n" % PID, "more_body": True})
        await asyncio.sleep(EVERY / 2)


async def listened(receive, streaming):
    """As frameworks do: the handler ends when the client has disconnected."""
    task = asyncio.ensure_future(streaming)
    while (await receive())["type"] != "http.disconnect":
        pass
    print("an event stream was told", flush=True)
    task.cancel()
    await asyncio.wait({task})


async def echo(receive, send):
    """Sends the pid, and then answers each message."""
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": str(PID)})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            print("a WebSocket was told", flush=True)
            return
        await send({"type": "websocket.send", "text": message["text"]})
