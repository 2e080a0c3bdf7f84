"""Prepares the worker of a server for windows of tracing and for a report, in moments without a request: imports the
modules that these need, so that they need not wait for imports, and takes the base.

A master of gunicorn imports the agent's modules before it forks, so its workers share them and need no time for that.
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
# The agent's modules. Each comes after those that it imports, so that each step imports one only.
MODULES = tuple(__package__ + "." + name for name in (
    "heap", "introspect", "allocators", "source_locations", "census", "base", "tracer", "windows", "lines", "targets",
    "running", "steps", "causes", "suspects", "verdict", "advice", "roots", "fills", "retention_paths", "report"))


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


def gunicorn(module):
    from . import servers

    servers.before(module.Arbiter, "spawn_worker", import_all)


def import_all(*_, **__):
    # Not ctypes: where the kernel forbids writable code, a process that was forked after its import may crash.
    for name in MODULES:
        __import__(name)


def import_next():
    """Imports the next module. Returns whether there was one."""
    for name in ("ctypes", *MODULES):
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
