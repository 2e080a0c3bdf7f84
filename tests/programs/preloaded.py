"""Leaks, and has PRELOADED_MB of objects: with `--preload` the workers share them with their master."""

import os

import leak

ENTRIES = [[number] for number in range(int(os.environ["PRELOADED_MB"]) * 9000)]


def app(environ, start_response):
    leak.keep()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [leak.answer().encode()]
