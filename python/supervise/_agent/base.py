"""Takes the figures with which a report compares: the base.

The worker of a server takes them in a moment without a request, in a few milliseconds. Before that it imports the
modules of the agent one by one, because a window of tracing and the base must not wait for imports. A job may be
interrupted, so it takes a whole census.
"""
import sys
import time

from . import allocators, census, heap, introspect, serving, state, time_budget

# Maximum time of a whole census.
WHOLE_SECONDS = 0.4
# Measured seconds for each block of pymalloc.
PRICE = 1e-7
# The part of malloc's memory that Python's large objects use in an application that has just warmed up.
LARGE_PART = 0.4

# A worker that is never idle imports one module at every eighth request of the supervisor.
PATIENCE = 8
# The modules that a window and a report need, in the order of their imports.
MODULES = ("lines", "targets", "windows", "running", "causes", "steps", "suspects", "verdict", "advice", "roots", "fills",
           "retention_paths", "report")


class Base:
    """Counts by type and lengths by id. No references to objects of the app. Taken in parts, each in its own idle
    moment. All loops over objects run in C."""

    blobs = {}

    def __init__(self, began):
        self.at = began
        self.reading = self.types = self.lengths = None

    def take_part(self):
        """Takes the next part. Returns whether it was the last one."""
        if self.reading is None:
            self.reading = allocators.Reading()
            self.large = int(self.reading.malloc * LARGE_PART)
        elif self.types is None:
            self.types = heap.count_types()
        else:
            kept = heap.of_types(heap.CONTAINERS)
            self.lengths = dict(zip(map(id, kept), map(len, kept)))
        return self.lengths is not None


def step(request, began):
    """Does the `base` request if no client waits: imports one module, or takes a part of the base."""
    mine = state.of_process()
    if mine.base is not None:
        return {"taken": True}
    if serving.is_quiet(census.estimate() * PRICE):
        if is_prepared():
            mine.partial = mine.partial or Base(began)
            if mine.partial.take_part():
                mine.base, mine.partial = mine.partial, None
    else:
        mine.refused += 1
        if mine.refused % PATIENCE == 0:
            is_prepared()
    return {"taken": mine.base is not None}


def is_prepared():
    """Whether all modules are imported. If not, imports the next one."""
    package = __package__ + "."
    for name in MODULES:
        if package + name not in sys.modules:
            __import__(package + name)
            return False
    return True


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
