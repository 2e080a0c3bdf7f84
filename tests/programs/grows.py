"""Grows at RATE_MB a second and records when its private memory exceeded CEILING bytes.

It appends a line `PID MONOTONIC_NS PRIVATE` to the file CROSSINGS. After every step it reads a cheap estimate
(resident less shared memory). The kernel updates that in batches, so its difference to the anonymous pages is
measured from time to time.
"""

import mmap
import os
import signal
import time

CEILING = int(os.environ["CEILING"])
RATE = float(os.environ["RATE_MB"]) * (1 << 20)
STEP = 64 << 10
NEAR = 4 << 20
PAGE = mmap.PAGESIZE

crossed, asked_to_end = False, False


def end(*_):
    """Exits only after the crossing is recorded: the decision may come before this program notices the crossing."""
    global asked_to_end
    asked_to_end = True
    if crossed:
        os._exit(0)


signal.signal(signal.SIGTERM, end)
statm = os.open("/proc/self/statm", os.O_RDONLY)


def anonymous():
    fields = os.pread(statm, 128, 0).split()
    return (int(fields[1]) - int(fields[2])) * PAGE


def private():
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        lines = [line.split() for line in file]
    return sum(int(line[1]) << 10 for line in lines if line[0] == "Anonymous:")


# One mapping written page by page, so that no allocator affects the time of the growth.
room = mmap.mmap(-1, CEILING * 3, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
page = b"x" * STEP
lacks = private() - anonymous()
begun, taken = time.monotonic(), 0
while taken + STEP <= CEILING * 3:
    room[taken : taken + STEP] = page
    taken += STEP
    now = time.monotonic_ns()
    left = CEILING - anonymous() - lacks
    # Close to the ceiling the difference to the estimate is measured again.
    if not crossed and (left <= 0 or (left < NEAR and taken % (8 * STEP) == 0)):
        lacks = private() - anonymous()
        crossed = CEILING <= anonymous() + lacks
        if crossed:
            with open(os.environ["CROSSINGS"], "a", encoding="ascii") as file:
                file.write(f"{os.getpid()} {now} {anonymous() + lacks}\n")
            if asked_to_end:
                os._exit(0)
    ahead = taken / RATE - (time.monotonic() - begun)
    if ahead > 0.0005:
        time.sleep(ahead)
time.sleep(600)
