"""A worker of a queue, in short: it waits, and ends at TERM."""

import signal
import sys


def stop(*_):
    sys.exit(0)


signal.signal(signal.SIGTERM, stop)
while True:
    signal.pause()
