"""What the growth is made of: exact figures of the allocators, split by what Python says it holds."""


class Parts:
    """The growth since the base, in bytes. `python` and `native` are in use; `freed` is free and still resident."""

    def __init__(self, base, before, after, large, cycles, pages, baseline, traced):
        """`before` and `after` are readings around the report's own collection; `large` is Python's large blocks now;
        `traced` is the part of the growth within windows that tracemalloc saw."""
        self.garbage = max(0, before.in_use() - after.in_use()) + cycles
        if base is not None:
            start = base.reading
            small = after.pymalloc - start.pymalloc if after.known[1] else (after.blocks - start.blocks) * 90
            heap = after.malloc - start.malloc
            big = large - base.large
            private = before.private - start.private
            spare = after.malloc_free - start.malloc_free + after.pymalloc_free - start.pymalloc_free
        else:
            # Nothing to compare with: what a worker has at its baseline is about half small objects.
            private = max(1, before.private - baseline)
            small = after.pymalloc - baseline * 35 // 100 if after.known[1] else after.blocks * 90
            heap = after.malloc - baseline * 15 // 100
            big = large - baseline // 10
            spare = after.malloc_free + after.pymalloc_free
        if not after.known[1] and after.known[0]:
            # All of Python's objects are malloc's then.
            big, small = min(heap, big + max(0, small)), 0
        self.growth = max(1, private) + pages + cycles * (pages == 0)
        big = max(0, big)
        if after.known[0]:
            # Sampled, so it may be more than malloc has in use.
            big = min(big, max(0, heap) + max(0, private - heap - small) // 2)
        self.python = max(0, small) + big
        in_heap = max(0, heap - big)
        rest = private - max(0, small) - max(0, heap) - self.report_garbage(before, after)
        self.freed = min(max(0, rest), max(0, spare)) + max(0, pages - cycles)
        # Mapped by someone else than malloc: C libraries, mmap, stacks of threads.
        outside = max(0, rest - self.freed) if after.known[0] else 0
        self.native = in_heap + outside
        self.move(traced * max(0, small + heap) - self.python)
        self.python = int(self.python)

    def move(self, more):
        """What a census does not reach (locals of running frames, buffers that C types hold) was seen by the windows:
        of what the allocators handed out meanwhile, that part was Python's."""
        more = min(self.native, max(0, more))
        self.python += more
        self.native -= more

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
        """The share of the growth that has a name: a suspect for live memory, the allocators' word for the rest."""
        total = sum(self.as_dict().values())
        named = self.garbage + self.freed + min(self.python, python_seen) + min(self.native, native_seen)
        return round(min(1.0, named / max(1, total, self.growth)), 3)
