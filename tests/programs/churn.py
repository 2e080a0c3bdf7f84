"""The leaking service, and a request that takes and gives back memory around a figure, in a loop."""

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
    """`swing` megabytes, half of them below `around`, for `s` seconds: how often, and the worst time."""
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
