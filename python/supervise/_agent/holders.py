"""From an object back to the module-level name that keeps it alive.

gc.get_referrers reads the whole heap at each call (60 ms for 1 M objects), so one call serves a level of all searches
at once, and a level is kept narrow. The search knows what gc does not say: dictionaries that gc does not track, and
the variables of running frames and of suspended greenlets.
"""
import gc
import sys
import time

from . import heap, looks, places

DEPTH = 9
# Seconds that are left for the way forwards.
RESERVE = 0.2
WIDTH = 48
PARENTS = 5
# What is referred to from everywhere (a name, a flag) says nothing.
MET = 4000
COMMON = 400
# In a linked list the way up never ends; reach() goes the other way.
ALIKE = 16

FRAME = type(sys._getframe())
CELL = type((lambda x: lambda: x)(1).__closure__[0])
FUNCTION = type(lambda: 0)


class Search:
    """Finds holders for all targets. Holds the only references to what it has met; drop() lets go of them."""

    def __init__(self, box, targets, loose, greenlets, hidden):
        self.box = box
        self.nodes = {}
        self.up = {}
        self.labels = {}
        self.named = {}
        self.modules = looks.modules()
        self.loose = loose
        self.greenlets = greenlets
        self.hidden = set(hidden)
        self.hidden |= {id(part) for part in (self, self.__dict__, self.nodes, self.up, self.labels, self.named,
                                              self.modules, loose, greenlets, targets)}
        self.hidden.update(map(id, self.modules.values()))
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
        for depth in range(DEPTH):
            if not frontier:
                return
            began = time.monotonic()
            if self.box.left() < price * 1.3 + RESERVE:
                self.box.missing.append("holders: level %d and above, no time left" % depth)
                return
            frontier = [thing for thing in frontier if sys.getrefcount(thing) < COMMON]
            self.hidden.add(id(frontier))
            if not frontier:
                return
            wanted = {id(thing): 0 for thing in frontier}
            self.hidden.add(id(wanted))
            found = heap.referrers(frontier)
            self.hidden.add(id(found))
            found.extend(self.untracked(wanted))
            ranked = []
            self.hidden.add(id(ranked))
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
            next_ids = []
            for rank, key in ranked:
                if self.box.left() < RESERVE / 2:
                    break
                parent = self.nodes[key]
                used = False
                for child, between in heap.within(parent, set(wanted)):
                    if wanted[child] < PARENTS or rank == 0:
                        wanted[child] += 1
                        self.link(child, between, key)
                        used = True
                between = None
                if used and rank > 0 and key not in self.up and not self.name_root(parent):
                    kind = type(parent)
                    times = expanded[id(kind)] = expanded.get(id(kind), 0) + 1
                    if times <= ALIKE or kind is dict or kind is list or kind is tuple or kind is CELL:
                        next_ids.append(key)
            self.stacks([key for key, count in wanted.items() if count == 0], next_ids)
            if len(next_ids) > WIDTH:
                next_ids = next_ids[:WIDTH]
            frontier = [self.nodes[key] for key in dict.fromkeys(next_ids)]
            parent = None
            self.hidden.add(id(frontier))
            price = time.monotonic() - began

    def link(self, child, between, key):
        """Notes the way from a child over tuples up to what holds them."""
        for one in reversed(between):
            self.nodes[id(one)] = one
            self.up.setdefault(child, []).append(id(one))
            child = id(one)
        if key not in self.up.setdefault(child, []):
            self.up[child].append(key)

    def rank(self, parent):
        """0 for the namespace of a module, then what people hold things by, last what is met by accident."""
        if id(parent) in self.modules:
            return 0
        kind = type(parent)
        if kind is FRAME:
            return None if places.is_ours(parent.f_code.co_filename) else 4
        if issubclass(kind, type) or kind is FUNCTION:
            return 1
        if kind is dict or kind is list or looks.base_of(kind) is not None:
            return 2
        if looks.module_of(kind) is not None and looks.module_of(kind).startswith("_supervise_agent"):
            return None
        return 2 if kind is CELL else 3

    def untracked(self, wanted):
        """Dictionaries of plain things, which gc does not know as referrers."""
        keys = set(wanted)
        found = []
        self.hidden.add(id(found))
        for names in self.loose:
            if self.box.left() < 0.1:
                break
            if not keys.isdisjoint(map(id, dict.values(names))):
                found.append(names)
        return found

    def stacks(self, orphans, next_ids):
        """Looks for what nobody seems to hold among the variables of running frames and of greenlets."""
        orphans = set(orphans)
        if not orphans:
            return
        for frame in list(places.stacks().values()):
            self.look_at(frame, None, orphans, next_ids)
        for greenlet in self.greenlets[:3000]:
            if self.box.left() < 0.15:
                break
            frame = greenlet_frame(greenlet)
            if frame is not None:
                self.look_at(frame, greenlet, orphans, next_ids)

    def look_at(self, frame, owner, orphans, next_ids):
        for frame, path, line in places.frames_of(frame, 40):
            if not places.is_app(path) and owner is None and not places.is_library(path):
                continue
            for name, value in looks.locals_of(frame):
                if id(value) in orphans:
                    text = "local '%s' of %s() at %s:%d" % (name, frame.f_code.co_name, path, line)
                    if owner is None:
                        self.named.setdefault(id(value), (None, text, (path, line, frame.f_code.co_name)))
                    else:
                        self.nodes[id(owner)] = owner
                        self.up.setdefault(id(value), []).append(id(owner))
                        self.labels[id(owner), id(value)] = text
                        next_ids.append(id(owner))
            name = value = None

    def name_root(self, thing):
        """Classes and functions have a name of their own; where it leads back to them the search is at its end."""
        kind = type(thing)
        if kind is FUNCTION:
            module, path = thing.__module__, thing.__qualname__
        elif issubclass(kind, type):
            module, path = looks.module_of(thing), looks._QUALNAME(thing)
        else:
            return False
        if type(module) is not str or type(path) is not str or "<" in path:
            return False
        module_object = sys.modules.get(module)
        if not issubclass(type(module_object), looks.MODULE_TYPE):
            return False
        at = looks.module_dict(module_object)
        for part in path.split("."):
            names = at if type(at) is dict else looks.class_dict(at) if issubclass(type(at), type) else {}
            at = names.get(part)
        if at is not thing:
            return False
        self.named[id(thing)] = ("%s.%s" % (module, path), path, None)
        return True

    def best(self, target):
        """(holder, chain, place, ids on the way) for one target; the holder is None where no module's name was reached."""
        start = id(target)
        target = None
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
            way = self.farthest(start)
            return None, self.chain(way), None, way
        key = min(ends)[1]
        way = []
        while key is not None:
            way.append(key)
            key = came[key]
        if way[0] in self.named:
            holder, text, place = self.named[way[0]]
            return holder, [holder or text] + self.chain(way), place, way
        name, names = self.modules[way[0]]
        attribute = key_of(names, self.nodes[way[1]])
        holder = "%s.%s" % (name, attribute)
        return holder, [holder] + self.chain(way[1:]), None, way

    def cost(self, key, depth):
        """Names of the app's own modules before libraries', near before far, the first importer last."""
        if key in self.named:
            holder, _, place = self.named[key]
            module = holder.partition(".")[0] if holder else None
            if place is not None:
                return (4 + depth, 0)
            names = looks.module_dict(sys.modules[module]) if type(sys.modules.get(module)) is looks.MODULE_TYPE else {}
        else:
            names = self.modules[key][1]
        file = names.get("__file__")
        app = type(file) is str and places.is_app(file)
        return (depth + (0 if app else 6), 0)

    def farthest(self, key):
        way = [key]
        while len(way) < 6:
            parents = [parent for parent in self.up.get(way[0], ()) if parent not in way]
            if not parents:
                break
            way.insert(0, parents[0])
        return way

    def chain(self, way):
        """Says each step from a holder down to the target."""
        said = []
        for index in range(1, len(way)):
            parent, child = self.nodes.get(way[index - 1]), self.nodes.get(way[index])
            label = self.labels.get((way[index - 1], way[index]))
            above = self.nodes.get(way[index - 2]) if index > 1 else None
            text = label or step(parent, child, above)
            if text:
                said.append(text)
        parent = child = above = None
        return said

    def drop(self):
        for part in (self.nodes, self.up, self.labels, self.named, self.modules):
            part.clear()
        self.loose = self.greenlets = None


def greenlet_frame(greenlet):
    for base in looks.mro(type(greenlet)):
        door = looks.class_dict(base).get("gr_frame")
        if type(door) is looks.GETSET:
            return door.__get__(greenlet)
    return None


def key_of(names, value):
    for key, found in list(dict.items(names)):
        if found is value and type(key) is str:
            return key
    return "?"


def step(parent, child, above):
    """How `parent` holds `child`: an attribute, a key, an item, a variable."""
    kind = type(parent)
    if looks.base_of(kind) is dict:
        if dict.__len__(parent) > 200000:
            return "value of %s" % looks.type_name(kind)
        for key, value in list(dict.items(parent)):
            if value is child:
                if type(key) is not str:
                    return "[...]"
                plain = above is not None and looks.base_of(type(above)) is None and type(above) not in (tuple, CELL)
                return ".%s" % key if plain else "[%s]" % ascii(key[:40])
            if key is child:
                return "key of %s" % looks.type_name(kind)
        return None
    if kind is CELL or kind is tuple and above is not None and type(above) is FUNCTION:
        return None if kind is CELL else "closure or default of %s()" % above.__qualname__
    if kind is FUNCTION:
        return None
    if looks.base_of(kind) is not None or kind is tuple:
        return "item of %s" % looks.type_name(kind)
    if issubclass(kind, type):
        return None
    frame = None
    try:
        frame = parent if kind is FRAME else None
        if kind.__name__ in ("generator", "coroutine", "async_generator"):
            frame = looks.class_dict(kind)[{"generator": "gi_frame", "coroutine": "cr_frame"}.get(kind.__name__, "ag_frame")].__get__(parent)
        if frame is not None:
            for name, value in looks.locals_of(frame):
                if value is child:
                    return "local '%s' of %s() at %s:%d" % (
                        name, frame.f_code.co_name, frame.f_code.co_filename, frame.f_lineno or frame.f_code.co_firstlineno)
    except Exception:
        pass
    if type(child) is dict:
        return None
    for name, value in looks.attributes(parent):
        if value is child:
            return ".%s of %s" % (name, looks.type_name(kind))
    return looks.type_name(kind)


def reach(box, wanted):
    """{id of a type: (holder, chain)} by the way forwards: from the app's modules to the first object of a type. For
    what is too long a way back, as a linked list is."""
    found = {}
    modules = list(looks.modules().values())
    for app_only in (True, False):
        queue = []
        seen = set()
        for name, names in reversed(modules):
            file = names.get("__file__")
            if (type(file) is str and places.is_app(file)) == app_only:
                for key, value in list(names.items()):
                    if type(key) is str and not looks.is_scenery(value):
                        queue.append((value, "%s.%s" % (name, key)))
        at = 0
        while at < len(queue) and len(seen) < 60000 and len(found) < len(wanted) and box.left() > 0.02:
            thing, holder = queue[at]
            queue[at] = None
            at += 1
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            kind = type(thing)
            if id(kind) in wanted and id(kind) not in found:
                found[id(kind)] = (holder, ["%s leads to %s" % (holder, looks.type_name(kind))])
            if len(queue) < 200000:
                for next_one in gc.get_referents(thing)[:200]:
                    if gc.is_tracked(next_one) and not looks.is_scenery(next_one):
                        queue.append((next_one, holder))
        queue = thing = next_one = None
        if len(found) == len(wanted):
            break
    return found
