"""Code shared by the leaking services: a leak for each request, a runaway, and a slow import."""

import os
import time

LEAK = int(os.environ.get("LEAK_KB", "0")) * 1024
KEPT = []

# Real applications may take long to import.
time.sleep(float(os.environ.get("IMPORT_SLEEP", "0")))


def keep(size=LEAK):
    """Leaks `size` bytes. The repetition writes every page, so that all are resident."""
    if size:
        KEPT.append(bytearray(b"x") * size)


def run_away(megabytes, rate):
    """Leaks `megabytes`, one at a time, `rate` of them a second."""
    begun = time.monotonic()
    for number in range(int(megabytes)):
        keep(1 << 20)
        ahead = (number + 1) / rate - (time.monotonic() - begun)
        if ahead > 0:
            time.sleep(ahead)


def answer():
    """The body that the strict client expects."""
    return f"ok:{os.getpid()}\n"
