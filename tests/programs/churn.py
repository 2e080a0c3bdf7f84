"""The leaking service, and a request that allocates and frees memory around a given size in a loop."""

import mmap
import time

from flask import request

from leaky_flask import app

MB = 1 << 20
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
PAGE = b"x" * mmap.PAGESIZE


def private():
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        lines = [line.split() for line in file]
    return sum(int(line[1]) << 10 for line in lines if line[0].startswith("Private_"))


def take(size):
    room = mmap.mmap(-1, size, flags=FLAGS)
    for at in range(0, size, len(PAGE)):
        room[at : at + len(PAGE)] = PAGE
    return room


@app.get("/churn")
def churn():
    """Allocates and frees `swing` MB around `around` MB for `s` seconds. Returns the rounds and the longest in ms."""
    around, swing = (int(request.args[key]) * MB for key in ("around", "swing"))
    ground = take(max(around - swing // 2 - private(), MB))
    rounds, worst = 0, 0.0
    end = time.monotonic() + float(request.args["s"])
    begun = time.monotonic()
    while begun < end:
        take(swing).close()
        now = time.monotonic()
        rounds, worst, begun = rounds + 1, max(worst, now - begun), now
    ground.close()
    return f"{rounds} {worst * 1e3:.1f}\n"


__all__ = ["app"]
