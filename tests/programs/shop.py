"""The service of the examples in `config/`."""

from leaky_flask import app

__all__ = ["app"]
