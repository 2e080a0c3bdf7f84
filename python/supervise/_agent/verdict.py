"""Divides the growth into its parts: exact figures of the allocators, split by what Python's objects occupy."""


class Parts:
    """The growth since the base, in bytes. `python` and `native` are in use; `freed` is free but still resident."""

    def __init__(self, base, before, after, large, cycles, pages, baseline, traced):
        """`before` and `after` are readings before and after the collection of the report. `large` is the size of
        Python's large blocks now. `traced` is the part of the growth within windows that tracemalloc saw."""
        self.garbage = max(0, before.in_use() - after.in_use()) + cycles
        if base is not None:
            start = base.reading
            small = after.pymalloc - start.pymalloc if after.known[1] else (after.blocks - start.blocks) * 90
            heap = after.malloc - start.malloc
            big = large - base.large
            private = before.private - start.private
            spare = after.malloc_free - start.malloc_free + after.pymalloc_free - start.pymalloc_free
        else:
            # There is no base to compare with. About half of a worker's memory at its baseline is Python's objects.
            private = max(1, before.private - baseline)
            small = after.pymalloc - baseline * 35 // 100 if after.known[1] else after.blocks * 90
            heap = after.malloc - baseline * 15 // 100
            big = large - baseline // 10
            spare = after.malloc_free + after.pymalloc_free
        if not after.known[1] and after.known[0]:
            # Python uses malloc for all objects then.
            big, small = min(heap, big + max(0, small)), 0
        self.growth = max(1, private) + pages + cycles * (pages == 0)
        big = max(0, big)
        if after.known[0]:
            # The figure is sampled, so it may exceed what malloc has in use.
            big = min(big, max(0, heap) + max(0, private - heap - small) // 2)
        self.python = max(0, small) + big
        in_heap = max(0, heap - big)
        rest = private - max(0, small) - max(0, heap) - self.report_garbage(before, after)
        self.freed = min(max(0, rest), max(0, spare)) + max(0, pages - cycles)
        # Memory that was not mapped by malloc: C libraries, mmap, stacks of threads.
        outside = max(0, rest - self.freed) if after.known[0] else 0
        self.native = in_heap + outside
        self.move(traced * max(0, small + heap) - self.python)
        self.python = int(self.python)

    def move(self, more):
        """Moves `more` bytes from native to Python. A census does not reach some memory of Python (locals of running
        frames, buffers of C types), but the windows have seen its part of the growth."""
        more = min(self.native, max(0, more))
        self.python += more
        self.native -= more

    def python_part(self):
        """Python's part of the live growth."""
        return self.python / max(1, self.python + self.native)

    @staticmethod
    def report_garbage(before, after):
        return max(0, before.in_use() - after.in_use())

    def as_dict(self):
        return {name: int(getattr(self, name)) for name in ("python", "native", "garbage", "freed")}

    def verdict(self):
        parts = self.as_dict()
        total = sum(parts.values())
        if total <= 0:
            return "mixed"
        name = max(parts, key=parts.get)
        return name if parts[name] >= 0.55 * total else "mixed"

    def explained(self, python_seen, native_seen):
        """The explained share of the growth: suspects explain live memory, and the allocators' figures the rest."""
        total = sum(self.as_dict().values())
        named = self.garbage + self.freed + min(self.python, python_seen) + min(self.native, native_seen)
        return round(min(1.0, named / max(1, total, self.growth)), 3)
