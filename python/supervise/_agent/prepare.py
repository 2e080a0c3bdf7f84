"""Prepares the worker of a server for windows of tracing and for a report, in moments without a request: imports the
modules that these need, so that they need not wait for imports, and takes the base.
"""
import sys
import time

from . import serving, state

# The time of all imports in one moment.
SECONDS = 0.002
# Measured seconds of a part of the base, and for each block of pymalloc, doubled.
PART_SECONDS = 0.002
PRICE = 1e-8
# A worker that is never idle takes one step of the imports at every eighth request of the supervisor.
PATIENCE = 8
# A module comes after those that it imports, so that each step imports one only.
MODULES = ("ctypes", ".heap", ".introspect", ".allocators", ".source_locations", ".census", ".base", ".tracer", ".windows",
           ".lines", ".targets", ".running", ".steps", ".causes", ".suspects", ".verdict", ".advice", ".roots", ".fills",
           ".retention_paths", ".report")


def step():
    """Does the `base` request if no client waits."""
    mine = state.of_process()
    if mine.base is None and serving.is_quiet(PART_SECONDS + sys.getallocatedblocks() * PRICE):
        end = time.monotonic() + SECONDS
        if not import_next():
            take_part(mine)
        else:
            while time.monotonic() < end and import_next():
                pass
    elif mine.base is None:
        mine.refused += 1
        if mine.refused % PATIENCE == 0:
            import_next()
    return {"taken": mine.base is not None}


def import_next():
    """Imports the next module. Returns whether there was one."""
    for name in MODULES:
        name = __package__ + name if name.startswith(".") else name
        if name not in sys.modules:
            __import__(name)
            return True
    return False


def take_part(mine):
    """Takes the next part of the base."""
    from . import base

    if mine.partial is None:
        mine.partial = base.Base()
        mine.parts = mine.partial.parts()
    try:
        next(mine.parts)
    except StopIteration:
        mine.base, mine.partial, mine.parts = mine.partial, None, None
