"""Each worker starts a process in a new session, and never ends it."""

import subprocess

LEFT = []


def app(environ, start_response):
    if not LEFT:
        LEFT.append(subprocess.Popen(["sleep", "7777"], start_new_session=True))
    start_response("200 OK", [])
    return [b"ok:%d\n" % LEFT[0].pid]
