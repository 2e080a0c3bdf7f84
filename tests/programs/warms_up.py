"""A Flask service that warms up and does not leak: its first requests to `/` fill a cache of WARM_MB."""

import os

import leak
from leaky_flask import app

PART = 10 << 10
PARTS = int(os.environ.get("WARM_MB", "60")) * (1 << 20) // PART
cache = []


@app.before_request
def warm_up():
    if len(cache) < PARTS:
        cache.append(bytearray(b"x") * PART)


__all__ = ["app", "leak"]
