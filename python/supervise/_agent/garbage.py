"""gc.collect() and malloc_trim(), and what each of the two gave back."""
import gc

from . import allocators, books


def collect():
    """Does the `gc` request. What came from cycles and what from trimming is kept for the verdict of a later report."""
    before = allocators.Reading()
    found = gc.collect()
    between = allocators.Reading(before.private)
    allocators.trim()
    after = allocators.private()
    books.note_collection(found, max(0, before.in_use() - between.in_use()), before.private - after)
    return {"collected": found, "private_before": before.private, "private_after": after}
