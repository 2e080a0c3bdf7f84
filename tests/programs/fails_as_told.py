"""A service of which each copy behaves as the file MODE says when it starts: `hang`, `exit`, `exit-0`, `500`, `large`.

Without the file it starts and answers as usual.
"""

import os
import sys
import time
from pathlib import Path

import leaky_asgi

_file = Path(os.environ["MODE"])
_mode = _file.read_text() if _file.exists() else ""
if _mode == "hang":
    time.sleep(3600)
if _mode == "exit":
    sys.exit("told to exit")
if _mode == "exit-0":
    os._exit(0)
_ballast = bytearray(os.urandom(1 << 20) * 150) if _mode == "large" else None


async def app(scope, receive, send):
    if _mode != "500" or scope["type"] != "http":
        await leaky_asgi.app(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
