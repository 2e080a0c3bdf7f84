"""A leaking service that cannot start while the file AWAY exists, as if its database were away."""

import os

if os.path.exists(os.environ["AWAY"]):
    raise RuntimeError("the database is away")

from leaky_asgi import app as asgi_app  # noqa: F401
from leaky_flask import app  # noqa: F401
