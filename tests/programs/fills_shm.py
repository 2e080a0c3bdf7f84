"""An application that writes a file of 30 MB to /dev/shm when it is imported, and does not remove it."""

import os

with open(os.environ["LEAVES"] + str(os.getpid()), "wb") as file:
    for _ in range(30):
        file.write(b"x" * (1 << 20))


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"here"]
