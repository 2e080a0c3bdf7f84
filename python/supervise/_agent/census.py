"""Counts what is alive: objects by type, the length of every container, and Python's large blocks.

gc knows only objects that may be part of cycles. Strings, bytes, arrays and dictionaries of nothing but such (which gc
does not track before 3.14) are met as the referents of the others, so both are looked at.
"""
import gc
import sys
from itertools import islice

from . import books, heap, looks

CHUNK = 2048
# Of a container longer than this, some entries are looked at and stand for all.
LONG = 400
SOME = 64
# Below this the referents are all looked at; above, of every k-th chunk only.
REFERENTS_FULL = 250000
BLOB = 128 * 1024
# What a Python object bigger than this costs, malloc has given it.
SMALL = 512
SHORT = 8
# The census of the base keeps this many lengths, about 100 bytes each.
KEPT = 60000
# Measured with 1 M objects, doubled: seconds for each object.
PRICE = 1.2e-6


def estimate():
    """An upper bound for the number of objects that gc knows, from the blocks of pymalloc."""
    return sys.getallocatedblocks()


class Census:
    def __init__(self, box):
        self.types = {}
        self.kinds = {}
        self.containers = []
        self.loose = []
        self.blobs = []
        self.large = 0
        self.total = 0
        self.complete = True
        # Arrays that were met by way of a view.
        self.counted = set()
        # Types whose objects are all small, by id.
        self.small = set()
        # The long containers of the chunk at hand.
        self.long = {}
        self.hidden = {id(self.small), id(self.long), id(self.counted), id(self.types), id(self.kinds), id(self.containers), id(self.loose), id(self.blobs)}
        self.hidden |= books.own_ids()
        seen = set()
        self.hidden.add(id(seen))
        things = heap.objects()
        self.hidden.add(id(things))
        self.total = len(things)
        # One in `stride` chunks has its referents looked at; the namespaces of modules always do.
        stride = 1 + self.total // REFERENTS_FULL
        once = self.count_large(self.namespaces(), seen)
        once += self.count_large(self.variables(box), seen)
        sampled = 0
        looked = 0
        passed = 0
        large_tracked = 0
        chunk = None
        for start in range(0, self.total, CHUNK):
            if box.left() < 0:
                self.complete = False
                break
            chunk = things[start:start + CHUNK]
            large_tracked += self.count_types(chunk)
            passed += len(chunk)
            if start // CHUNK % stride == 0 and box.left() > box.seconds * 0.25:
                # Long ones apart: the list of all they refer to would need room of its own.
                met = gc.get_referents(*[one for one in chunk if id(one) not in self.long])
                sampled += self.count_large(met, seen) + self.count_tuples(met, seen)
                met = None
                for one, base, length in self.long.values():
                    sampled += self.count_long(one, base, length, seen)
                    if box.left() < box.seconds * 0.2:
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
            box.missing.append("census: %d of %d objects in the time given" % (passed, self.total))

    def namespaces(self):
        found = []
        for name, names in looks.modules().values():
            found.extend(names.values())
        return found

    def variables(self, box):
        """Plain things in the variables of running functions, which gc does not see: a thread that never ends keeps
        them."""
        from . import places
        found = []
        for top in list(places.stacks().values())[:2000]:
            for frame, path, line in places.frames_of(top, 30):
                if places.is_app(path) and box.left() > 0.05:
                    found.extend([pair[1] for pair in looks.locals_of(frame)])
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
                kinds[key] = (kind, looks.base_of(kind), issubclass(kind, type), looks.is_sized(kind))
            _, base, is_class, sized = kinds[key]
            if base is not None:
                length = base.__len__(thing)
                if length >= SHORT:
                    if id(thing) not in self.hidden:
                        self.containers.append((length, thing))
                        if length > LONG:
                            self.long[id(thing)] = (thing, base, length)
                        if length > 24:
                            bytes_here = looks.getsizeof(thing) if sized else object.__sizeof__(thing)
                            if bytes_here > SMALL:
                                total += bytes_here
            elif is_class:
                total += 1200
        return total

    def count_tuples(self, met, seen):
        """Counts tuples that finished objects refer to, because `heap.objects()` leaves tuples out. What a tuple holds
        is counted as if the holder of the tuple held it."""
        total = 0
        for _ in range(heap.NESTED):
            tuples = [one for one in met if type(one) is tuple]
            if not tuples:
                break
            for one in tuples:
                if len(one) > 60 and id(one) not in seen:
                    seen.add(id(one))
                    total += looks.getsizeof(one)
            met = gc.get_referents(*tuples)
            total += self.count_large(met, seen)
        tuples = met = one = None
        return total

    def count_large(self, referents, seen):
        """Adds up what gc does not track: text, bytes, arrays, and dictionaries of plain things."""
        total = 0
        is_tracked = gc.is_tracked
        small = self.small
        for thing in referents:
            kind = type(thing)
            if kind is str:
                if len(thing) < 120:
                    continue
            elif kind is bytes:
                if len(thing) < 480:
                    continue
            elif kind is int or kind is float or kind is tuple or id(kind) in small or is_tracked(thing):
                continue
            elif kind is dict:
                total += self.count_plain(thing, seen)
                continue
            total += self.count_one(thing, seen)
        return total

    def count_one(self, thing, seen):
        """The size of one plain thing that malloc holds, the first time it is met."""
        bytes_here = self.plain_size(thing)
        if bytes_here <= SMALL or id(thing) in seen:
            return 0
        seen.add(id(thing))
        if bytes_here >= BLOB:
            self.blobs.append((bytes_here, thing))
        return bytes_here

    def count_plain(self, names, seen):
        """A dictionary that gc does not track: nothing but this leads to its values, which are plain as well."""
        key = id(names)
        if key in seen or key in self.hidden:
            return 0
        seen.add(key)
        length = len(names)
        self.loose.append(names)
        if length >= SHORT:
            self.containers.append((length, names))
        bytes_here = looks.getsizeof(names)
        total = bytes_here if bytes_here > SMALL else 0
        if length <= LONG:
            # Copied, since another thread may add one.
            return total + self.count_large(list(dict.values(names)), seen)
        return total + self.count_long(names, dict, length, seen)

    def count_long(self, thing, base, length, seen):
        """What a long container holds, from its newest entries. Only what cannot be met elsewhere is multiplied."""
        some = []
        for pair in looks.newest(thing, base, SOME):
            some.extend(pair)
        large = self.count_large(some, seen) + self.count_tuples(some, seen)
        return int(large * length / min(length, SOME))

    def plain_size(self, thing):
        """The size of something gc does not track; a view of an array counts for the array that it keeps."""
        kind = type(thing)
        if kind is str or kind is bytes:
            return looks.getsizeof(thing)
        key = id(kind)
        if key not in self.kinds:
            self.kinds[key] = (kind, looks.base_of(kind), issubclass(kind, type), looks.is_sized(kind))
            if looks.is_small(kind):
                self.small.add(key)
        total = looks.getsizeof(thing) if self.kinds[key][3] else object.__sizeof__(thing)
        if total < 400:
            under = looks.array_under(thing)
            if under is not None and not gc.is_tracked(under) and id(under) not in self.counted:
                self.counted.add(id(under))
                total += looks.size(under)
        return total


class Base:
    """What is kept of a census: lengths and sizes by id, counts by type. No reference to anything of the app."""

    def __init__(self, census, reading):
        self.reading = reading
        self.types = {key: count for key, count in census.types.items()}
        self.large = census.large
        self.total = census.total
        self.blobs = {id(thing): size for size, thing in census.blobs}
        kept = census.containers
        if len(kept) > KEPT:
            # Ties are broken by nothing: comparing two containers would run the app's code.
            kept = sorted(kept, key=first, reverse=True)
        self.lengths = {id(thing): length for length, thing in islice(kept, KEPT)}
        self.floor = kept[KEPT - 1][0] if len(kept) > KEPT else SHORT


def first(pair):
    return pair[0]


def grown(census, base):
    """(growth, was known at the base, container), the greatest growth first."""
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
