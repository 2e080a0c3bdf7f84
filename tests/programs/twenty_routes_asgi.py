"""The routes of `twenty_routes.py` as a plain ASGI service, which has no templates."""

import leak
import leaky_asgi


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await leaky_asgi.lifespan(receive, send)
        return
    if scope["path"].startswith("/r7/"):
        leak.keep()
    body = leak.answer().encode()
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
