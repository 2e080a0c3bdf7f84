"""Runs gc.collect() and malloc_trim(), and measures how much memory each of them freed."""
import gc
import sys
import time

from . import allocators, serving, state

# Measured seconds for each block of pymalloc, doubled.
PRICE = 4.5e-8
# Free pages are returned at most this often, in seconds, while requests are served.
TRIM_PAUSE = 1.0
# Less than this part of the memory is not worth an answer.
TRIMMED_MIN = 0.1

trimmed_at = 0.0


def collect():
    """Does the `gc` request, if no client waits meanwhile. Keeps the two amounts for the verdict of a later report."""
    if not serving.is_quiet(sys.getallocatedblocks() * PRICE):
        return trim()
    before = allocators.Reading()
    found = gc.collect()
    between = allocators.Reading(before.private)
    allocators.trim()
    after = allocators.private()
    state.note_collection(found, max(0, before.in_use() - between.in_use()), before.private - after)
    return {"collected": found, "private_before": before.private, "private_after": after}


def trim():
    """Only returns free pages to the kernel. That stops no other thread, so it is done while requests are served."""
    global trimmed_at
    now = time.monotonic()
    if now - trimmed_at < TRIM_PAUSE:
        return {"busy": True}
    trimmed_at = now
    before = allocators.private()
    allocators.trim()
    after = allocators.private()
    if before - after < before * TRIMMED_MIN:
        return {"busy": True}
    state.note_collection(0, 0, before - after)
    return {"collected": 0, "private_before": before, "private_after": after}
