"""What the leaking services share: a leak for each request, a runaway, and a slow import."""

import os
import time

LEAK = int(os.environ.get("LEAK_KB", "0")) * 1024
KEPT = []

# An application that takes its time to import, as real ones do.
time.sleep(float(os.environ.get("IMPORT_SLEEP", "0")))


def keep(size=LEAK):
    """Keeps `size` bytes for ever. The repetition writes every page, so that they are resident."""
    if size:
        KEPT.append(bytearray(b"x") * size)


def run_away(megabytes, rate):
    """Takes `megabytes`, `rate` of them a second, one at a time."""
    begun = time.monotonic()
    for number in range(int(megabytes)):
        keep(1 << 20)
        ahead = (number + 1) / rate - (time.monotonic() - begun)
        if ahead > 0:
            time.sleep(ahead)


def answer():
    """The body that the strict client expects."""
    return f"ok:{os.getpid()}\n"
