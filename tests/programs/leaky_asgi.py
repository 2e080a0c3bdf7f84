"""A plain ASGI service that leaks LEAK_KB on every request to `/`, with paths for a runaway and a slow answer."""

import asyncio
from urllib.parse import parse_qs

import leak


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    query = {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}
    if scope["path"] == "/":
        leak.keep()
    elif scope["path"] == "/alloc":
        leak.run_away(float(query["mb"]), float(query.get("rate", "1000")))
    elif scope["path"] == "/sleep":
        await asyncio.sleep(float(query["s"]))
    body = leak.answer().encode()
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def lifespan(receive, send):
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
