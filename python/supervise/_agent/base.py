"""The figures with which a report compares: the base.

The worker of a server takes them part by part, each in a moment without a request (`prepare.py`). A job may be
interrupted, so it takes a whole census.
"""
import sys
import time
from collections import Counter

from . import allocators, census, heap, introspect, time_budget

# Maximum time of a whole census.
WHOLE_SECONDS = 0.4
# The part of malloc's memory that Python's large objects use in an application that has just warmed up.
LARGE_PART = 0.4
# The number of objects in each part of a base.
PART = 10000


class Base:
    """Counts by type and lengths by id. No references to objects of the app. All loops over objects run in C.

    The order in which gc knows objects changes little between two parts, and a report needs no exact counts.
    """

    blobs = {}

    def __init__(self):
        self.at = time.monotonic()
        self.types = Counter()
        self.lengths = {}

    def parts(self):
        """Takes one part each time it is iterated."""
        self.reading = allocators.Reading()
        self.large = int(self.reading.malloc * LARGE_PART)
        yield
        places = range(0, sys.getallocatedblocks(), PART)
        for start in places:
            before = sum(self.types.values())
            heap.count_types(self.types, start, start + PART)
            yield
            if sum(self.types.values()) == before:
                break
            kept = heap.of_types(heap.CONTAINERS, start, start + PART)
            self.lengths.update(zip(map(id, kept), map(len, kept)))
            kept = None
            yield


def take_whole(mine, room, began):
    """Takes a whole census if there is no base yet."""
    if mine.base is not None:
        return
    introspect.note_tracer()
    reading = allocators.Reading()
    objects = census.estimate()
    # The time starts now: the first request has to import the agent, and an incomplete base misleads every report.
    budget = time_budget.TimeBudget(WHOLE_SECONDS, room, time.monotonic())
    if not budget.allows(0, objects * 16, "base census"):
        return
    taken = census.Census(budget)
    mine.base = census.Base(taken, reading)
    mine.base.at = began
