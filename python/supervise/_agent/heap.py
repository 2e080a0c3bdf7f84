"""What gc knows, without what C may still be building.

`tuple(generator)` makes its tuple first and fills it while it runs the generator. gc knows that tuple from the first
moment. Its free slots are NULL, which Python code may not read, and at the end C sets its length, which fails with a
SystemError if there is another reference to it. A frozenset that PySet_Add fills may have no other reference either.

So the lists that gc gives are not used as they are. The functions here drop the objects of these two types, and they
do so within one call of C: list.extend() pulls the objects through iterators that are all written in C, so no bytecode
is evaluated, no other thread gets the GIL, and no reference is left when it returns. (A collection could run the app's
code in the middle; the agent switches gc off while it answers.) A tuple is looked at only if a finished object refers to
it: then C has finished the tuple.

Other containers may be unfinished as well: lists whose slots are still NULL, lists that are empty while they are sorted,
dictionaries that are half filled. A reference to these does no harm. They are read only by gc.get_referents(), which
skips NULL, or slot by slot by newest().
"""
import gc
import sys
from itertools import chain, compress, islice, repeat, starmap
from operator import contains, is_, not_

# Maximum depth of nested tuples between an object and its holder.
NESTED = 3
# Maximum number of tuples that are followed upwards from an object.
ABOVE = 64
# In a heap with this many blocks or more, only one level of tuples is followed.
GREAT = 150000
# Maximum number of nested tuples whose contents are read on one level.
SOME = 20000
# Lists up to this length are read as a whole.
SHORT = 256


def family():
    """The ids of the types whose objects may not be referenced: tuple, frozenset, and their subclasses."""
    found = set()
    queue = [tuple, frozenset]
    while queue:
        kind = queue.pop()
        if id(kind) not in found:
            found.add(id(kind))
            queue.extend(type.__subclasses__(kind))
    return found


def sieve(lists, wanted=False):
    """An iterator over the objects in `lists`, an iterator of lists, without the objects of the family. With `wanted`,
    only the objects of the family.

    All iterators are made before they start, and hold a list of gc only while they read it. That list contains these
    iterators as well. So an object that exists before the list may not keep the list: that would be a cycle, which
    lives until the next collection. (zip() keeps what it gave last, and tee() its first block.)
    """
    twice = chain.from_iterable(map(repeat, lists, repeat(2)))
    kinds = map(map, repeat(type), twice)
    keys = map(map, repeat(id), kinds)
    chosen = map(map, repeat(contains), repeat(repeat(family())), keys)
    if not wanted:
        chosen = map(map, repeat(not_), chosen)
    return chain.from_iterable(map(compress, twice, chosen))


def objects():
    """All objects that gc tracks, without the family."""
    found = []
    found.extend(sieve(starmap(gc.get_objects, ((),))))
    return found


def referrers(things):
    """What refers to the objects in the list `things`, directly or through tuples; within() gives these tuples.

    Each call of get_referrers() reads the whole heap and compares each reference with all that it was given, so a great
    heap is read for one level of tuples only, and for few of them.
    """
    found = []
    found.extend(sieve(starmap(gc.get_referrers, (things,))))
    found.extend(sieve(starmap(gc.get_referrers, iter((tuples_above(things, 0),)))))
    if sys.getallocatedblocks() < GREAT:
        found.extend(sieve(starmap(gc.get_referrers, iter((tuples_above(things, 1),)))))
    return found


def tuples_above(things, depth):
    """An iterator over some of the tuples (and frozensets) that refer to `things`, or to those one level below."""
    arguments = (things,) if depth == 0 else iter((tuples_above(things, depth - 1),))
    return islice(sieve(starmap(gc.get_referrers, arguments), wanted=True), ABOVE)


def within(parent, children):
    """[(a child, the tuples between it and `parent`, the outer one first)], children given and returned by their ids.

    What a finished object refers to is finished, so these tuples may be looked at.
    """
    things = gc.get_referents(parent)
    found = [(key, ()) for key in children.intersection(map(id, things))]
    level = [(one, (one,)) for one in compress(things, map(is_, map(type, things), repeat(tuple)))]
    for _ in range(NESTED):
        inner = [one for one, way in level]
        things = gc.get_referents(*inner)
        left = children.intersection(map(id, things))
        deeper = any(map(is_, map(type, things), repeat(tuple)))
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
                following.extend([(inside, way + (inside,)) for inside in things if type(inside) is tuple])
        level = following
    inner = things = one = level = following = None
    return found


class Slots:
    """Reads lists slot by slot, for a list may have slots that C has not filled yet."""

    def __init__(self):
        import ctypes
        # Called with the GIL held, and gives an address: no reference is taken, and NULL becomes None.
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
