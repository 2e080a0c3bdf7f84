"""Leaks, beside PRELOADED_MB of objects that its workers share with their master where the master loads it."""

import os

import leak

ENTRIES = [[number] for number in range(int(os.environ["PRELOADED_MB"]) * 9000)]


def app(environ, start_response):
    leak.keep()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [leak.answer().encode()]
