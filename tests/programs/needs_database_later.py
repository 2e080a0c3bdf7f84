"""A leaking ASGI service whose lifespan cannot start while the file AWAY exists, as if its database were away."""

import os

import leaky_asgi


async def app(scope, receive, send):
    if scope["type"] == "lifespan" and os.path.exists(os.environ["AWAY"]):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "the database is away"})
        return
    await leaky_asgi.app(scope, receive, send)
