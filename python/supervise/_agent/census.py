"""Counts live objects by type, and records the length of each container and the size of each large block.

gc knows only objects that may be part of cycles. It does not know strings, bytes, arrays and, before 3.14,
dictionaries that contain nothing else. The census finds these as referents of the objects that gc knows.
"""
import gc
import sys
from itertools import compress, islice, repeat
from operator import contains, not_

from . import heap, introspect, state

CHUNK = 2048
# Of a container longer than this, only a sample of SOME entries is read.
LONG = 400
SOME = 64
# Up to this number of objects, the referents of all objects are read; above it, those of every k-th chunk.
REFERENTS_FULL = 250000
BLOB = 128 * 1024
# Larger Python objects are allocated by malloc, smaller ones by pymalloc.
SMALL = 512
SHORT = 8
# Maximum number of lengths that the base census keeps, about 100 bytes each.
KEPT = 60000
# Seconds for each object: measured with 1 M objects, then doubled.
PRICE = 1.2e-6


def estimate():
    """An upper bound of the number of objects that gc tracks: the number of blocks of pymalloc."""
    return sys.getallocatedblocks()


class Census:
    def __init__(self, budget):
        self.types = {}
        self.kinds = {}
        self.containers = []
        self.loose = []
        self.blobs = []
        self.large = 0
        self.total = 0
        self.complete = True
        # Arrays that were counted through a view.
        self.counted = set()
        self.family = heap.family()
        # Types whose objects are all small, or counted elsewhere, by id.
        self.small = {id(int), id(float), id(bool), id(type(None)), id(complex)} | self.family
        # The long containers of the current chunk.
        self.long = {}
        self.hidden = {id(part) for part in (self.small, self.long, self.counted, self.family, self.types, self.kinds,
                                             self.containers, self.loose, self.blobs)}
        self.hidden |= state.own_ids()
        seen = set()
        self.hidden.add(id(seen))
        things = heap.objects()
        self.hidden.add(id(things))
        self.total = len(things)
        # The referents of one in `stride` chunks are read. The namespaces of modules are always read.
        stride = 1 + self.total // REFERENTS_FULL
        once = self.count_all(self.namespaces(), seen)
        once += self.count_all(self.variables(budget), seen)
        sampled = 0
        looked = 0
        passed = 0
        large_tracked = 0
        chunk = None
        for start in range(0, self.total, CHUNK):
            if budget.left() < 0:
                self.complete = False
                break
            chunk = things[start:start + CHUNK]
            large_tracked += self.count_types(chunk)
            passed += len(chunk)
            if start // CHUNK % stride == 0 and budget.left() > budget.seconds * 0.25:
                # Long containers are read separately: a list of all their referents would need much memory.
                met = heap.referents(*[one for one in chunk if id(one) not in self.long])
                sampled += self.count_all(met, seen)
                met = None
                for one, base, length in self.long.values():
                    sampled += self.count_long(one, base, length, seen)
                    if budget.left() < budget.seconds * 0.2:
                        break
                looked += len(chunk)
            else:
                self.complete = self.complete and start // CHUNK % stride != 0
            one = None
            self.long.clear()
        chunk = things = None
        if passed:
            large_tracked = large_tracked * self.total // passed
        self.large = int(once + large_tracked + sampled * (self.total / max(1, looked)))
        if passed < self.total:
            budget.missing.append("census: %d of %d objects, no time left" % (passed, self.total))

    def namespaces(self):
        found = []
        for name, names in introspect.modules().values():
            found.extend(names.values())
        return found

    def variables(self, budget):
        """Untracked objects in the variables of running functions. gc does not know these, and a thread that never
        ends keeps them alive."""
        from . import source_locations
        found = []
        for top in list(source_locations.stacks().values())[:2000]:
            for frame, path, line in source_locations.frames_of(top, 30):
                if source_locations.is_app(path) and budget.left() > 0.05:
                    found.extend([pair[1] for pair in introspect.locals_of(frame)])
        return [one for one in found if not gc.is_tracked(one)]

    def count_types(self, chunk):
        """Counts types, keeps containers, and adds up the large blocks of containers and classes."""
        types = self.types
        kinds = self.kinds
        total = 0
        for thing in chunk:
            kind = type(thing)
            key = id(kind)
            try:
                types[key] += 1
            except KeyError:
                types[key] = 1
                kinds[key] = (kind, introspect.base_of(kind), issubclass(kind, type), introspect.is_sized(kind))
            _, base, is_class, sized = kinds[key]
            if base is not None:
                length = base.__len__(thing)
                if length >= SHORT:
                    if id(thing) not in self.hidden:
                        self.containers.append((length, thing))
                        if length > LONG:
                            self.long[id(thing)] = (thing, base, length)
                        if length > 24:
                            bytes_here = introspect.getsizeof(thing) if sized else object.__sizeof__(thing)
                            if bytes_here > SMALL:
                                total += bytes_here
            elif is_class:
                total += 1200
        return total

    def count_all(self, met, seen):
        """Counts untracked objects, also in the tuples among `met`, to which finished objects refer. `heap.objects()`
        omits tuples, and gc does not know those of plain values: the parameters of queries, the arguments of jobs. The
        contents of a tuple are counted as contents of its holder."""
        total = self.count_large(met, seen)
        for _ in range(heap.NESTED):
            tuples = list(heap.of_family(met, self.family))
            if not tuples:
                break
            for one in tuples:
                if id(one) not in seen and object.__sizeof__(one) > SMALL:
                    seen.add(id(one))
                    total += object.__sizeof__(one)
            met = gc.get_referents(*tuples)
            total += self.count_large(met, seen)
        tuples = met = one = None
        return total

    def count_large(self, referents, seen):
        """Adds up the sizes of objects that gc does not track: text, bytes, arrays, and dictionaries of these."""
        total = 0
        for thing in self.untracked(referents):
            kind = type(thing)
            if kind is str:
                if len(thing) < 120:
                    continue
            elif kind is bytes:
                if len(thing) < 480:
                    continue
            elif kind is dict:
                total += self.count_plain(thing, seen)
                continue
            total += self.count_one(thing, seen)
        return total

    def untracked(self, referents):
        """The objects among `referents` that gc does not track, each of them once, without those that are always small
        and the tuples. All steps are in C."""
        plain = list(compress(referents, map(not_, map(gc.is_tracked, referents))))
        plain = list(compress(plain, map(not_, map(contains, repeat(self.small), map(id, map(type, plain))))))
        return dict(zip(map(id, plain), plain)).values()

    def count_one(self, thing, seen):
        """The size of an untracked object if malloc holds it; 0 for one that is already counted."""
        bytes_here = self.plain_size(thing)
        if bytes_here <= SMALL or id(thing) in seen:
            return 0
        seen.add(id(thing))
        if bytes_here >= BLOB:
            self.blobs.append((bytes_here, thing))
        return bytes_here

    def count_plain(self, names, seen):
        """Counts a dictionary that gc does not track. Its values are found only here; gc does not track them either."""
        key = id(names)
        if key in seen or key in self.hidden:
            return 0
        seen.add(key)
        length = len(names)
        self.loose.append(names)
        if length >= SHORT:
            self.containers.append((length, names))
        bytes_here = introspect.getsizeof(names)
        total = bytes_here if bytes_here > SMALL else 0
        if length <= LONG:
            # Copied, because another thread may add an entry.
            return total + self.count_all(list(dict.values(names)), seen)
        return total + self.count_long(names, dict, length, seen)

    def count_long(self, thing, base, length, seen):
        """Estimates the contents of a long container from its newest entries. Counts only objects that gc does not
        track, because the others are counted elsewhere."""
        some = []
        for pair in introspect.newest(thing, base, SOME):
            some.extend(pair)
        large = self.count_all(some, seen)
        return int(large * length / min(length, SOME))

    def plain_size(self, thing):
        """The size of an object that gc does not track. The size of a view includes the array that it keeps alive."""
        kind = type(thing)
        if kind is str or kind is bytes:
            return introspect.getsizeof(thing)
        key = id(kind)
        if key not in self.kinds:
            self.kinds[key] = (kind, introspect.base_of(kind), issubclass(kind, type), introspect.is_sized(kind))
            if introspect.is_small(kind):
                self.small.add(key)
        total = introspect.getsizeof(thing) if self.kinds[key][3] else object.__sizeof__(thing)
        if total < 400:
            under = introspect.array_under(thing)
            if under is not None and not gc.is_tracked(under) and id(under) not in self.counted:
                self.counted.add(id(under))
                total += introspect.size(under)
        return total


class Base:
    """The part of a census that is kept: lengths and sizes by id, counts by type. No references to the app's objects."""

    def __init__(self, census, reading):
        self.reading = reading
        self.types = {key: count for key, count in census.types.items()}
        self.large = census.large
        self.total = census.total
        self.blobs = {id(thing): size for size, thing in census.blobs}
        kept = census.containers
        if len(kept) > KEPT:
            # The key is the length alone: to compare two containers would run code of the app.
            kept = sorted(kept, key=first, reverse=True)
        self.lengths = {id(thing): length for length, thing in islice(kept, KEPT)}
        self.floor = kept[KEPT - 1][0] if len(kept) > KEPT else SHORT


def first(pair):
    return pair[0]


def grown(census, base):
    """(growth, whether it is in the base, container), the greatest growth first."""
    found = []
    for length, thing in census.containers:
        before = base.lengths.get(id(thing)) if base is not None else None
        gain = length - before if before is not None else length
        if gain >= 4:
            found.append((gain, before is not None, thing))
    found.sort(key=first, reverse=True)
    return found


def grown_types(census, base):
    """(growth, type), the greatest growth first."""
    found = []
    for key, count in census.types.items():
        gain = count - (base.types.get(key, 0) if base is not None else 0)
        if gain >= 4:
            found.append((gain, census.kinds[key][0]))
    found.sort(key=first, reverse=True)
    return found
