"""Searches from an object back to the module-level name that keeps it alive.

gc.get_referrers reads the whole heap at each call (60 ms for 1 M objects). So one call serves one level of all
searches, and the number of objects on a level is limited. The search also covers what gc does not know: dictionaries
that gc does not track, and the variables of running frames and of suspended greenlets. It ends at the objects that
have a name (`roots`).
"""
import gc
import sys
import time

from . import heap, introspect, roots, source_locations, steps
from .steps import CELL, FRAME, FUNCTION

DEPTH = 16
# Length of a way that leads to no name.
FAR = 12
# Seconds that are reserved for the search forwards, reach().
RESERVE = 0.2
# Maximum number of objects whose referrers are searched at once, in a great heap and in others.
WIDTH = 48
WIDTH_SMALL = 96
PARENTS = 5
# Maximum number of referrers of one level.
MET = 4000
# An object with more references than this is not followed: its referrers tell nothing. Plain values (a name, a flag)
# have many, and the owner of a registry, to which each entry refers, may have many, too.
COMMON = 20000
COMMON_PLAIN = 400
# Maximum number of objects that the search forwards reads, in the app's modules and in others.
SEEN = 60000
# Maximum number of followed objects of one type on the way up, which in a linked list would never end. reach()
# searches in the other direction.
ALIKE = 16


def is_common(thing):
    return sys.getrefcount(thing) >= (COMMON_PLAIN if type(thing) in roots.PLAIN else COMMON)


class Way:
    """The result of a search: the holder's name (None if there is none), the description of each step down to the
    target, a place (file, line, function), the ids and the types of the objects on the way, and whether the app or a
    library owns the target."""
    __slots__ = ("holder", "chain", "place", "keys", "types", "is_app")

    def __init__(self, holder, chain, place, keys, types, is_app):
        self.holder = holder
        self.chain = chain
        self.place = place
        self.keys = keys
        self.types = types
        self.is_app = is_app


def trace(came, key):
    """The way from an object down to the target, of which the search upwards began."""
    keys = []
    while key is not None:
        keys.append(key)
        key = came[key]
    return keys


class Search:
    """Finds holders for all targets. Has the only references to the objects that it found; drop() removes them."""

    def __init__(self, budget, named, targets, loose, greenlets, exceptions, hidden):
        self.budget = budget
        self.roots = named
        # {id of a frame: the exception that keeps it}
        self.raised = roots.frames_of_exceptions(exceptions)
        # Objects of which all referrers were searched, and their types.
        self.searched = set()
        self.below = set()
        self.family = heap.family()
        self.nodes = {}
        self.up = {}
        self.labels = {}
        self.named = {}
        self.modules = self.roots.modules
        self.loose = loose
        self.greenlets = greenlets
        # Lists of the report that refer to objects of the app.
        self.listed = (targets, loose, greenlets, exceptions)
        self.hidden = set(hidden)
        self.hidden |= {id(part) for part in (self, self.__dict__, self.nodes, self.up, self.labels, self.named,
                                              self.raised, self.searched, self.below, self.family, loose, greenlets,
                                              exceptions, targets)}
        frontier = []
        self.hidden.add(id(frontier))
        for thing in targets:
            if id(thing) not in self.nodes:
                self.nodes[id(thing)] = thing
                if not self.name_root(thing):
                    frontier.append(thing)
        self.climb(frontier)

    def climb(self, frontier):
        price = 0
        expanded = {}
        width = WIDTH if sys.getallocatedblocks() > heap.GREAT else WIDTH_SMALL
        for depth in range(DEPTH):
            if not frontier:
                return
            began = time.monotonic()
            if self.budget.left() < price * 1.3 + RESERVE:
                self.budget.missing.append("holders: level %d and above, no time left" % depth)
                return
            next_ids = self.leave_frames(frontier)
            frontier = [thing for thing in frontier if id(thing) not in self.up and not is_common(thing)]
            self.hidden.add(id(frontier))
            self.below.update(map(id, map(type, frontier)))
            if not frontier and not next_ids:
                return
            wanted = {id(thing): 0 for thing in frontier}
            self.hidden.add(id(wanted))
            met = {}
            self.add_parents(heap.referrers(frontier), wanted, met, expanded)
            left = [thing for thing in frontier if not wanted[id(thing)]]
            self.hidden.add(id(left))
            if left:
                # Only these are searched through tuples and untracked dictionaries, because that costs more.
                self.add_parents(heap.referrers_of_tuples(left), wanted, met, expanded)
                self.add_parents(self.untracked(left), wanted, met, expanded)
            if self.budget.left() > RESERVE / 2:
                self.searched.update(wanted)
            self.stacks([key for key, count in wanted.items() if count == 0], next_ids)
            next_ids.extend(met)
            # The first referrer of each child comes before the second ones.
            next_ids = sorted(dict.fromkeys(next_ids), key=lambda key: met.get(key, 0))
            frontier = [self.nodes[key] for key in next_ids[:width]]
            left = None
            self.hidden.add(id(frontier))
            price = time.monotonic() - began

    def add_parents(self, found, wanted, met, expanded):
        """Links the objects in `found` to the objects that they hold. `wanted` is {id of a child: number of its
        parents}, and `met` gets {id of a parent that the search follows: its number among the parents of a child}."""
        ranked = []
        for parent in found:
            if id(parent) in self.hidden or id(parent) == id(found):
                continue
            rank = self.rank(parent)
            if rank is not None:
                ranked.append((rank, id(parent)))
                self.nodes.setdefault(id(parent), parent)
        ranked.sort()
        parent = found = None
        del ranked[MET:]
        for rank, key in ranked:
            if self.budget.left() < RESERVE / 2:
                break
            parent = self.nodes[key]
            number = None
            for child, between in heap.within(parent, set(wanted), self.family):
                if wanted[child] < PARENTS or rank == 0:
                    wanted[child] += 1
                    self.link(child, between, key)
                    number = min(wanted[child], number or PARENTS)
            between = None
            if number is not None and key not in self.modules and key not in self.up and not self.name_root(parent):
                kind = type(parent)
                times = expanded[id(kind)] = expanded.get(id(kind), 0) + 1
                if times <= ALIKE or kind is dict or kind is list or kind is tuple or kind is CELL:
                    met[key] = number
        parent = None

    def leave_frames(self, frontier):
        """Links the frames of tracebacks to the exceptions that keep them. Returns the ids of these exceptions."""
        found = []
        for thing in frontier:
            exception = self.raised.get(id(thing)) if type(thing) is FRAME else None
            if exception is not None:
                self.nodes[id(exception)] = exception
                self.link(id(thing), (), id(exception))
                found.append(id(exception))
        thing = exception = None
        return found

    def link(self, child, between, key):
        """Records the path from a child through tuples up to their holder."""
        for one in reversed(between):
            self.nodes[id(one)] = one
            self.up.setdefault(child, []).append(id(one))
            child = id(one)
        if key not in self.up.setdefault(child, []):
            self.up[child].append(key)

    def rank(self, parent):
        """The order in which referrers are followed: 0 for what has a name, then usual holders, frames last."""
        if id(parent) in self.modules or id(parent) in self.roots.names:
            return 0
        kind = type(parent)
        if kind is FRAME:
            return None if source_locations.is_ours(parent.f_code.co_filename) else 5
        if issubclass(kind, type) or kind is FUNCTION:
            return 1
        if kind is dict or kind is list or introspect.base_of(kind) is not None:
            return 2
        if introspect.module_of(kind) is not None and introspect.module_of(kind).startswith("_supervise_agent"):
            return None
        if kind is CELL:
            return 2
        # Entries that refer to their owner are not what keeps it.
        return 4 if id(kind) in self.below else 3

    def untracked(self, things):
        """The referrers of untracked objects among the dictionaries that gc does not track either."""
        keys = {id(thing) for thing in things if not gc.is_tracked(thing)}
        found = []
        for names in self.loose if keys else ():
            if self.budget.left() < 0.1:
                break
            if not keys.isdisjoint(map(id, dict.values(names))):
                found.append(names)
        return found

    def stacks(self, orphans, next_ids):
        """Looks for objects without a known holder among the variables of running frames and of greenlets."""
        orphans = set(orphans)
        if not orphans:
            return
        for frame in list(source_locations.stacks().values()):
            self.look_at(frame, None, orphans, next_ids)
        for greenlet in self.greenlets[:3000]:
            if self.budget.left() < 0.15:
                break
            frame = steps.greenlet_frame(greenlet)
            if frame is not None:
                self.look_at(frame, greenlet, orphans, next_ids)

    def look_at(self, frame, owner, orphans, next_ids):
        for frame, path, line in source_locations.frames_of(frame, 40):
            if not source_locations.is_app(path) and owner is None and not source_locations.is_library(path):
                continue
            for name, value in introspect.locals_of(frame):
                if id(value) in orphans:
                    text = "local '%s' of %s() at %s:%d" % (name, frame.f_code.co_name, path, line)
                    if owner is None:
                        place = (path, line, frame.f_code.co_name)
                        self.named.setdefault(id(value), (None, text, place, False))
                    else:
                        self.nodes[id(owner)] = owner
                        self.up.setdefault(id(value), []).append(id(owner))
                        self.labels[id(owner), id(value)] = text
                        next_ids.append(id(owner))
            name = value = None

    def name_root(self, thing):
        """Records the name of an object, and returns True, if it has one: the search ends there. A class or function
        has a name if that leads to it."""
        kind = type(thing)
        known = self.roots.names.get(id(thing))
        if known is not None:
            self.named[id(thing)] = (known[0], known[0], None, known[1])
            return True
        if kind is introspect.MODULE_TYPE:
            # What the namespace does not hold is in the state of a C module, such as the functions of atexit.
            namespace = introspect.module_dict(thing)
            name = self.modules[id(namespace)][0] if id(namespace) in self.modules else None
            if name is not None:
                self.named[id(thing)] = (name, name, None, roots.is_app_module(namespace))
            return name is not None
        if kind is FUNCTION:
            module, path = thing.__module__, thing.__qualname__
        elif issubclass(kind, type):
            module, path = introspect.module_of(thing), introspect._QUALNAME(thing)
        else:
            return False
        if type(module) is not str or type(path) is not str or "<" in path:
            return False
        module_object = sys.modules.get(module)
        if not issubclass(type(module_object), introspect.MODULE_TYPE):
            return False
        at = namespace = introspect.module_dict(module_object)
        for part in path.split("."):
            names = at if type(at) is dict else introspect.class_dict(at) if issubclass(type(at), type) else {}
            at = names.get(part)
        if at is not thing:
            return False
        self.named[id(thing)] = ("%s.%s" % (module, path), path, None, roots.is_app_module(namespace))
        return True

    def best(self, start):
        """The way from a holder down to the target with this id."""
        came = {start: None}
        queue = [(start, 0)]
        ends = []
        while queue:
            key, depth = queue.pop(0)
            if key in self.named:
                ends.append((self.cost(key, depth), key))
                continue
            for parent in self.up.get(key, ()):
                if parent not in came:
                    came[parent] = key
                    if parent in self.modules:
                        ends.append((self.cost(parent, depth), parent))
                    else:
                        queue.append((parent, depth + 1))
        if not ends:
            # A context refers to itself through the tokens of its variables, so it may be anywhere on a cycle.
            contexts = [key for key in came if steps.is_context(type(self.nodes[key]))]
            keys = trace(came, contexts[0]) if contexts else self.farthest(start)
            holder = steps.CONTEXT if contexts else self.outside_python(keys)
            return self.way(holder, [holder] if holder else [], None, keys, False)
        keys = trace(came, min(ends)[1])
        if keys[0] in self.named:
            holder, text, place, is_app = self.named[keys[0]]
            place = place or self.place_of(holder)
            return self.way(holder, [holder or text], place, keys, is_app)
        label, names = self.modules[keys[0]]
        is_app = roots.is_app_module(names)
        if label in self.roots.repeated:
            return self.way(label, [label], self.place_of(label), keys[1:], is_app)
        holder = "%s.%s" % (label, steps.key_of(names, self.nodes[keys[1]]))
        return self.way(holder, [holder], None, keys[1:], is_app)

    def place_of(self, label):
        """The first line of modules that were loaded again and again."""
        file = self.roots.repeated.get(label)
        return (file, 1, None) if type(file) is str else None

    def way(self, holder, chain, place, keys, is_app):
        types = [steps.title(self.nodes[key]) for key in keys if key in self.nodes]
        owners = [steps.is_of_app(type(self.nodes[key])) for key in reversed(keys[:-1]) if key in self.nodes]
        is_app = ([one for one in owners if one is not None] or [is_app])[0]
        return Way(holder, chain + self.chain(keys), place, keys, types, is_app)

    def cost(self, key, depth):
        """The order of preference: names in the app's modules before those in libraries, short paths before long ones."""
        if key in self.named:
            place, is_app = self.named[key][2:]
            if place is not None:
                return (4 + depth, 0)
        else:
            is_app = roots.is_app_module(self.modules[key][1])
        return (depth + (0 if is_app else 6), 0)

    def outside_python(self, keys):
        """What keeps an object to which, as far as gc knows, nothing refers; or None."""
        key = keys[0]
        if key not in self.searched or key in self.up:
            return None
        # Without the references of `nodes` and of this call, and of the lists of the report.
        count = sys.getrefcount(self.nodes[key]) - 2
        count -= sum([list(map(id, part)).count(key) for part in self.listed])
        if count < 1:
            return None
        return steps.outside_python([self.nodes[key] for key in keys])

    def farthest(self, key):
        way = [key]
        while len(way) < FAR:
            parents = [parent for parent in self.up.get(way[0], ()) if parent not in way]
            if not parents:
                break
            way.insert(0, parents[0])
        return way

    def chain(self, keys):
        """Describes each step from a holder down to the target."""
        said = []
        for index in range(1, len(keys)):
            parent, child = self.nodes.get(keys[index - 1]), self.nodes.get(keys[index])
            label = self.labels.get((keys[index - 1], keys[index]))
            above = self.nodes.get(keys[index - 2]) if index > 1 else None
            if steps.is_context(type(parent)):
                label = steps.variable_of(parent, keys)
            text = label or steps.step(parent, child, above)
            if text:
                said.append(text)
        parent = child = above = None
        return said

    def drop(self):
        for part in (self.nodes, self.up, self.labels, self.named, self.raised):
            part.clear()
        self.roots = self.modules = self.loose = self.greenlets = self.listed = None


def reach(budget, wanted):
    """{id: (holder, chain)} for ids of objects or of types, found forwards: from the app's modules to the object, or to
    the first object of the type. For objects from which the way back is too long, as in a linked list."""
    found = {}
    modules = list(introspect.modules().values())
    for app_only in (True, False):
        queue = []
        seen = set()
        for name, names in reversed(modules):
            if roots.is_app_module(names) == app_only:
                queue.extend([(thing, holder, None) for thing, holder in starts(name, names)])
        at = 0
        while at < len(queue) and len(seen) < SEEN and len(found) < len(wanted) and budget.left() > 0.02:
            thing, holder, above = queue[at]
            if id(thing) not in seen:
                seen.add(id(thing))
                for key in (id(type(thing)), id(thing)):
                    if key in wanted and key not in found:
                        found[key] = (holder, [holder] + chain_down(queue, at))
                if len(queue) < 200000:
                    for next_one in introspect.contents(thing)[:200]:
                        if gc.is_tracked(next_one) and not introspect.is_program_object(next_one):
                            queue.append((next_one, holder, at))
            at += 1
        queue = thing = next_one = None
        if len(found) == len(wanted):
            break
    return found


def chain_down(queue, at):
    """Describes each step from a start of the search forwards to the object at this index of its queue."""
    things = []
    while at is not None:
        things.insert(0, queue[at][0])
        at = queue[at][2]
    chain = [steps.step(things[index - 1], things[index], things[index - 2] if index > 1 else None)
             for index in range(1, len(things))]
    things = None
    return [text for text in chain if text]


def starts(name, names):
    """[(object, its name)] for the globals of a module and for the attributes of its classes."""
    found = []
    for key, value in list(names.items()):
        if type(key) is str and not introspect.is_program_object(value):
            found.append((value, "%s.%s" % (name, key)))
        elif issubclass(type(value), type) and introspect.module_of(value) == name:
            found.extend([(one, "%s.%s.%s" % (name, key, attribute))
                          for attribute, one in list(introspect.class_dict(value).items())
                          if type(attribute) is str and not introspect.is_program_object(one)])
    return found
