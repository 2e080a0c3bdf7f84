"""A service whose requests build objects by C code that calls back into Python, and check them. `app` is for WSGI and
`asgi` for ASGI. An object that came out wrong is an error 500."""

import os
import random
import sys
import traceback

import leak
from leaky_asgi import lifespan

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "python"))

from builders import BUILDERS, MISSING

if MISSING:
    raise SystemExit("these packages are missing: %s" % ", ".join(MISSING))
sys.setswitchinterval(1e-5)


def respond():
    try:
        for builder in random.sample(BUILDERS, 2):
            builder()
    except Exception:
        traceback.print_exc()
        return "500 Internal Server Error", b"wrong\n"
    return "200 OK", leak.answer().encode()


def app(environ, start_response):
    status, body = respond()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    status, body = respond()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": int(status[:3]), "headers": headers})
    await send({"type": "http.response.body", "body": body})
