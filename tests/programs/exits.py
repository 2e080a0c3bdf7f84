"""A WSGI application that writes its priority to stderr in an exit handler, and when Python frees its modules. It also
writes whether the modules for a report were imported before it."""

import atexit
import os
import sys


def say(what, get=os.getpriority, which=os.PRIO_PROCESS, write=os.write):
    write(2, b"%s at priority %d\n" % (what, get(which, 0)))


class Last:
    def __del__(self, say=say):
        say(b"freed")


LAST = Last()
print("report imported:", "_supervise_agent.report" in sys.modules, file=sys.stderr)
atexit.register(say, b"exit handler")


def app(environ, start_response):
    body = b"ok:%d\n" % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]

