"""The objects that gc tracks, without those that C code may still be building.

`tuple(generator)` creates its tuple first and fills it while it runs the generator. gc knows that tuple from the start.
Its free slots are NULL, which Python code must not read. At the end C code sets the tuple's length, which fails with a
SystemError if there is another reference to the tuple. A frozenset that PySet_Add fills must not have another
reference either.

So the lists that gc returns are not used directly. The functions here remove the objects of these two types, and they
do so within one call of C code: list.extend() pulls the objects through iterators that are all written in C. So no
bytecode is evaluated, no other thread gets the GIL, and no reference is left when it returns. (A collection could run
code of the app in the middle, so the agent disables gc while it answers.) A tuple is read only if a finished object
refers to it: then C code has finished the tuple.

Other containers may be unfinished, too: lists with slots that are still NULL, lists that are empty while they are
sorted, dictionaries that are half filled. A reference to these does no harm. They are read only by
gc.get_referents(), which skips NULL, or slot by slot by newest().

gc.get_referents() must not read modules: `_asyncio` of CPython 3.12 shows gc the freed objects of its free list. A
reference to one of them frees it a second time, and the list becomes endless. So only the namespace of a module is read.
"""
import gc
import sys
from collections import OrderedDict, defaultdict, deque
from itertools import chain, compress, islice, repeat, starmap
from operator import contains, itemgetter, not_

# Maximum depth of nested tuples between an object and its holder.
NESTED = 3
# Maximum number of tuples that are followed upwards from an object.
ABOVE = 64
# In a heap with at least this many blocks, only one level of tuples is followed.
GREAT = 150000
# Maximum number of nested tuples that are read on one level.
SOME = 20000
# Lists up to this length are read as a whole.
SHORT = 256
# The ids of the types of containers whose growth is followed by their length.
CONTAINERS = frozenset(map(id, (dict, list, set, deque, OrderedDict, defaultdict)))
MODULE = type(sys)
namespace = MODULE.__dict__["__dict__"].__get__


def family():
    """The ids of the types whose objects must not be referenced: tuple, frozenset, and their subclasses."""
    found = set()
    queue = [tuple, frozenset]
    while queue:
        kind = queue.pop()
        if id(kind) not in found:
            found.add(id(kind))
            queue.extend(type.__subclasses__(kind))
    return found


def sieve(lists, wanted=False, kinds=None):
    """An iterator over the objects in `lists`, an iterator of lists, without the objects of the family. With `wanted`,
    only the objects of the family, or of the types with these ids.

    All iterators are created before the first one runs, and hold a list of gc only while they read it. That list
    contains these iterators, too. So an object that is older than the list must not keep the list: that would be a
    cycle, which stays until the next collection. (zip() keeps its last result, and tee() its first block.)
    """
    twice = chain.from_iterable(map(repeat, lists, repeat(2)))
    types = map(map, repeat(type), twice)
    keys = map(map, repeat(id), types)
    chosen = map(map, repeat(contains), repeat(repeat(family() if kinds is None else kinds)), keys)
    if not wanted:
        chosen = map(map, repeat(not_), chosen)
    return chain.from_iterable(map(compress, twice, chosen))


def objects():
    """All objects that gc tracks, without the family."""
    found = []
    found.extend(sieve(starmap(gc.get_objects, ((),))))
    return without_itself(found)


def lists_of_objects(start, stop):
    """An iterator of one list: the objects that gc tracks from the place `start` on, up to `stop`."""
    return map(itemgetter(slice(start, stop)), starmap(gc.get_objects, ((),)))


def of_types(kinds, start=None, stop=None):
    """All objects that gc tracks of the types with these ids, of which none is of the family. Optionally only those
    between two places in the order of gc."""
    found = []
    found.extend(sieve(lists_of_objects(start, stop), wanted=True, kinds=kinds))
    return without_itself(found)


def count_types(counts, start, stop):
    """Adds the types of these objects to a Counter {id of a type: number of objects}, in one call of C code."""
    counts.update(map(id, map(type, chain.from_iterable(lists_of_objects(start, stop)))))


def without_itself(found):
    """Removes a list from itself, because it would keep itself alive until the next collection."""
    for index, one in enumerate(found):
        if one is found:
            del found[index]
            break
    return found


def referrers(things):
    """The objects that refer to the objects in the list `things`."""
    found = []
    found.extend(sieve(starmap(gc.get_referrers, (things,))))
    return found


def referrers_of_tuples(things):
    """The objects that refer to the objects in the list `things` through tuples. within() finds these tuples.

    Each call of get_referrers() reads the whole heap and compares each reference with all its arguments. So in a large
    heap only one level of tuples is followed, and only few tuples.
    """
    found = []
    found.extend(sieve(starmap(gc.get_referrers, iter((tuples_above(things, 0),)))))
    if sys.getallocatedblocks() < GREAT:
        found.extend(sieve(starmap(gc.get_referrers, iter((tuples_above(things, 1),)))))
    return found


def tuples_above(things, depth):
    """An iterator over some of the tuples (and frozensets) that refer to `things`, or to those one level below."""
    arguments = (things,) if depth == 0 else iter((tuples_above(things, depth - 1),))
    return islice(sieve(starmap(gc.get_referrers, arguments), wanted=True), ABOVE)


def referents(*things):
    """The objects to which these finished objects refer."""
    found = gc.get_referents(*[one for one in things if type(one) is not MODULE])
    found.extend([namespace(one) for one in things if type(one) is MODULE])
    return found


def of_family(things, keys):
    """An iterator over the objects of the family among `things`. `keys` is family()."""
    return compress(things, map(contains, repeat(keys), map(id, map(type, things))))


def within(parent, children, keys):
    """[(a child, the tuples between it and `parent`, the outer one first)]. Children are given and returned as ids, and
    `keys` is family().

    A finished object refers only to finished objects, so these tuples (and frozensets) may be read.
    """
    things = referents(parent)
    found = [(key, ()) for key in children.intersection(map(id, things))]
    level = [(one, (one,)) for one in of_family(things, keys)]
    for _ in range(NESTED):
        inner = [one for one, way in level]
        things = gc.get_referents(*inner)
        left = children.intersection(map(id, things))
        deeper = any(map(contains, repeat(keys), map(id, map(type, things))))
        if not left and not deeper:
            break
        following = []
        for one, way in level:
            if not left and len(following) > SOME:
                break
            things = gc.get_referents(one)
            met = left.intersection(map(id, things))
            left -= met
            found.extend([(key, way) for key in met])
            if deeper and len(following) <= SOME:
                following.extend([(inside, way + (inside,)) for inside in of_family(things, keys)])
        level = following
    inner = things = one = level = following = None
    return found


class Slots:
    """Reads lists slot by slot, because a list may have slots that C code has not filled yet."""

    def __init__(self):
        import ctypes
        # Called with the GIL held. It returns an address, so it takes no reference, and NULL becomes None.
        prototype = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_ssize_t)
        self.address = prototype(("PyList_GetItem", ctypes.pythonapi))

    def newest(self, thing, some):
        length = list.__len__(thing)
        found = []
        for index in range(length - 1, max(-1, length - 1 - some), -1):
            if self.address(thing, index):
                found.append(list.__getitem__(thing, index))
        return found


slots = None


def newest(thing, some):
    """Up to `some` of the last items of a list, the last one first."""
    global slots
    if type(thing) is list and len(thing) <= SHORT:
        # get_referents() reads a list from its end.
        return gc.get_referents(thing)[:some]
    if slots is None:
        slots = Slots()
    return slots.newest(thing, some)
