"""Chooses the objects for which to search holders: the ones that grew most, and a sample of the others."""
import sys
from collections import Counter

from . import census as counting, heap, introspect, source_locations, state

KNOWN = 60
FRESH = 10
LONGEST = 6
BLOBS = 8
# Maximum number of types of which instances are weighed, and of types that become targets by their weight.
TYPES = 100
HEAVIEST = 8
# Maximum number of instances of a type of which the line is looked up in a window.
SAMPLES = 6
# Classes of which one instance is enough: each has connections, threads or certificates of its own.
RESOURCES = frozenset((
    "SSLContext", "Session", "Client", "AsyncClient", "BaseClient", "ClientSession", "PoolManager", "ConnectionPool",
    "Executor", "Pool", "Engine", "MongoClient", "Channel", "Redis", "BaseScheduler", "Producer", "Consumer"))


class Target:
    """An object whose holder is searched, and the number and bytes of all objects that it represents."""

    def __init__(self, kind, thing, count, size, source):
        self.key = id(thing)
        self.kind = kind
        self.type = introspect.type_name(type(thing))
        self.count = count
        self.size = int(size)
        self.source = source
        self.where = None
        self.type_id = id(type(thing))
        # For a container, the type of the newest entry, and whether that is a view of a larger array.
        self.entry = None
        self.is_view = False


    def reached(self):
        """The id by which the search forwards knows it: of its type, if all objects of the type are alike."""
        return self.type_id if self.source == "type" else self.key


def own_bytes(samples, limit):
    """The mean weight of samples, each a tuple of objects, without objects that several samples share."""
    met = {}
    for parts in samples:
        weights = {}
        for part in parts:
            if part is not None and not introspect.is_program_object(part):
                weights.update(introspect.weigh(part, limit))
        for key, size in weights.items():
            known = met.get(key)
            met[key] = (size, 1 if known is None else known[1] + 1)
    parts = part = None
    own = sum([size for size, times in met.values() if times == 1])
    if len(samples) == 1 and own == 0:
        own = sum([size for size, times in met.values()])
    return own / max(1, len(samples))


def container(thing, gain):
    """A target for a container that grew, weighed by its newest entries."""
    base = introspect.base_of(type(thing))
    pairs = introspect.newest(thing, base, 12)
    bytes_each = own_bytes(pairs, 120) + introspect.size(thing) / max(1, base.__len__(thing)) if pairs else 0
    target = Target("container", thing, gain, gain * bytes_each, "grown")
    if pairs:
        entry = pairs[0][1]
        target.entry = introspect.type_name(type(entry))
        target.is_view = is_view(entry)
    pairs = entry = None
    return target


def is_view(thing):
    """Whether a numpy array keeps a far larger one alive."""
    under = introspect.array_under(thing)
    return under is not None and introspect.size(under) > 2 * type(thing).nbytes.__get__(thing)


def choose(budget, census, base, named, things):
    """`named` is the index of names. Returns the targets, and appends their objects to `things`."""
    found = []
    grown = counting.grown(census, base)
    grown = [one for one in grown if id(one[2]) not in named.modules]
    known = [(gain, thing) for gain, old, thing in grown if old]
    fresh = [(gain, thing) for gain, old, thing in grown if not old]
    del grown
    # Without a base, what has a name in the app is the most likely to have grown.
    ours = [one for one in fresh if base is None and named.is_app(one[1])][:KNOWN]
    longest = LONGEST if base is not None else KNOWN
    for gain, thing in known[:KNOWN] + ours + fresh[:longest]:
        if budget.left() < 0.3:
            budget.missing.append("containers: not all weighed")
            break
        add(found, things, container(thing, gain), thing)
    # If there are many new containers, a sample represents all of those that have no name of their own.
    rest = [(gain, thing) for gain, thing in fresh[longest:] if not named.is_unique(thing)]
    stride = max(1, len(rest) // FRESH)
    for start in range(0, len(rest) if len(rest) >= 40 else 0, stride):
        if budget.left() < 0.3:
            break
        block = rest[start:start + stride]
        length, thing = block[len(block) // 2]
        weight = sum(introspect.weigh(thing, 80).values()) / length * sum([gain for gain, _ in block])
        add(found, things, Target("container", thing, len(block), weight, "sample"), thing)
    block = rest = None
    blobs = [(size - (base.blobs.get(id(thing), 0) if base is not None else 0), thing) for size, thing in census.blobs]
    blobs = sorted([blob for blob in blobs if blob[0] > counting.BLOB // 2], key=counting.first, reverse=True)
    stride = max(1, len(blobs) // BLOBS)
    for size, thing in blobs[::stride]:
        add(found, things, Target("blob", thing, stride, size * stride, "blob"), thing)
    special(budget, census, base, found, things)
    # The cost of the search grows with the number of targets, so only the largest are kept.
    order = sorted(range(len(found)), key=lambda index: found[index].size, reverse=True)
    kept = set(order[:28]) | {i for i in order if found[i].source == "type"}
    for index in range(len(found)):
        if index not in kept:
            things[index] = None
    result = [found[i] for i in range(len(found)) if i in kept]
    things[:] = [things[i] for i in range(len(found)) if i in kept]
    return result


def add(found, things, target, thing):
    if target.key not in [one.key for one in found]:
        found.append(target)
        things.append(thing)


def special(budget, census, base, found, things):
    """Adds targets for types that grew: types with a special meaning, and types with many new instances."""
    wanted = {}
    for gain, kind in counting.grown_types(census, base)[:600]:
        meaning = meaning_of(kind)
        if meaning is not None or (not is_plain(kind) and gain >= 20 and len(wanted) < TYPES):
            wanted[id(kind)] = (gain, meaning, [])
    if not wanted or budget.left() < 0.3 + census.total * 3e-7:
        return
    things_of_gc = heap.objects()
    for thing in reversed(things_of_gc):
        entry = wanted.get(id(type(thing)))
        if entry is not None and len(entry[2]) < 12:
            entry[2].append(thing)
    thing = None
    del things_of_gc
    chosen = []
    for gain, meaning, samples in wanted.values():
        if samples and budget.left() > 0.3:
            chosen.append((gain * own_bytes([(one,) for one in samples[:6]], 100), gain, meaning, samples))
    chosen.sort(key=counting.first, reverse=True)
    one = None
    for index, (size, gain, meaning, samples) in enumerate(chosen):
        if index >= HEAVIEST and meaning not in ("resource", "thread", "task"):
            continue
        # The newest object may still be in use, so one from the middle is added as a typical one.
        kind = type(samples[0])
        for one in (samples[len(samples) // 2], samples[-1]):
            target = Target(meaning or "instance", one, gain, size, "type")
            target.where = place_of(one, meaning) if meaning is not None else place_of_class(kind)
            add(found, things, target, one)
    samples = one = chosen = wanted = None


def is_plain(kind):
    return introspect.module_of(kind) in ("builtins", "collections", "_thread", "functools", "types")


def meaning_of(kind):
    name = introspect._QUALNAME(kind)
    module = introspect.module_of(kind)
    if module == "builtins" and name in ("generator", "coroutine", "async_generator"):
        return "generator"
    if issubclass(kind, BaseException):
        return "exception"
    if issubclass(kind, type):
        return "class"
    if kind is introspect.MODULE_TYPE:
        return "module"
    if introspect.inherits(kind, "threading", "Thread"):
        return "thread"
    if introspect.inherits(kind, "_asyncio", "Task") or introspect.inherits(kind, "asyncio.tasks", "Task"):
        return "task"
    if introspect.inherits(kind, "logging", "Handler"):
        return "handler"
    if "greenlet" in sys.modules and name == "Greenlet":
        return "greenlet"
    if introspect.inherits(kind, "logging", "Logger"):
        return "logger"
    if not is_plain(kind) and not RESOURCES.isdisjoint(map(introspect._QUALNAME, introspect.mro(kind))):
        return "resource"
    return None


def place_of(thing, meaning):
    """(file, line, function) of the code that an object runs or ran."""
    try:
        code = None
        if meaning == "generator":
            names = introspect.class_dict(type(thing))
            for name in ("gi_code", "cr_code", "ag_code"):
                if name in names:
                    code = names[name].__get__(thing)
        elif meaning == "thread":
            code = function_code(dict(introspect.attributes(thing)).get("_target"))
        elif meaning == "task":
            for name in ("_coro",):
                for base in introspect.mro(type(thing)):
                    descriptor = introspect.class_dict(base).get(name)
                    if type(descriptor) is introspect.GETSET:
                        return place_of(descriptor.__get__(thing), "generator")
        elif meaning == "exception":
            step = BaseException.__dict__["__traceback__"].__get__(thing)
            last = None
            while step is not None:
                code = step.tb_frame.f_code
                if source_locations.is_app(code.co_filename) or last is None:
                    last = (code.co_filename, step.tb_lineno, code.co_name)
                step = step.tb_next
            return last
        if code is not None:
            return code.co_filename, code.co_firstlineno, code.co_name
    except Exception:
        pass
    return None


def place_of_class(kind):
    """(file, line, function) of the `__init__` of a class of the app, or None."""
    code = function_code(introspect.class_dict(kind).get("__init__"))
    if code is None or not source_locations.is_app(code.co_filename):
        return None
    return code.co_filename, code.co_firstlineno, "%s.__init__" % introspect._QUALNAME(kind)


def function_code(thing):
    kind = type(thing)
    if kind is type(function_code):
        return thing.__code__
    if kind is type(Target.__init__.__get__(1)):
        return function_code(thing.__func__)
    return None


def line_joins(look_up, mine):
    """Finds the lines that allocated the newest entries of containers that grew. Needs a window.

    Every allocation is expensive while tracing, so this reads only containers and does not take a census.
    """
    import gc
    lengths = mine.base.lengths if mine.base is not None else {}
    hidden = state.own_ids()
    every = heap.objects()
    hidden.add(id(every))
    lines_of_instances(look_up, mine, every)
    del every
    things = heap.of_types(heap.CONTAINERS)
    for name, names in introspect.modules().values():
        things.extend([one for one in names.values() if type(one) is dict and not gc.is_tracked(one)])
    grown = []
    hidden.update((id(things), id(grown)))
    for one in things:
        length = len(one)
        if length >= 4:
            gain = length - lengths.get(id(one), 0)
            if gain >= 4 and id(one) not in hidden:
                grown.append((gain, id(one) in lengths, one))
    one = None
    del things
    grown.sort(key=counting.first, reverse=True)
    known = [entry for entry in grown if entry[1]][:60]
    for gain, old, thing in known + grown[:20]:
        lines = {}
        for pair in introspect.newest(thing, introspect.base_of(type(thing)), 16):
            for part in reversed(pair):
                frames = source_locations.outside(look_up(part) or ()) if part is not None else ()
                if frames:
                    key = frames[source_locations.choose(frames)]
                    lines[key] = lines.get(key, 0) + 1
                    break
        if lines and len(mine.joins) < 2000:
            joined = mine.joins.setdefault(id(thing), {})
            for key, times in lines.items():
                joined[key] = joined.get(key, 0) + times


def lines_of_instances(look_up, mine, every):
    """Finds the lines that created the newest instances of the types that grew."""
    before = mine.base.types if mine.base is not None else {}
    counts = Counter(map(id, map(type, every)))
    wanted = {key: [] for key, count in counts.items() if count - before.get(key, 0) >= 8}
    for thing in reversed(every):
        samples = wanted.get(id(type(thing)))
        if samples is not None and len(samples) < SAMPLES:
            samples.append(thing)
    for key, samples in wanted.items():
        kind = type(samples[0])
        if is_plain(kind) and meaning_of(kind) is None:
            continue
        for thing in samples:
            frames = source_locations.outside(look_up(thing) or ())
            if frames and len(mine.made) < 2000:
                made = mine.made.setdefault(key, {})
                line = frames[source_locations.choose(frames)]
                made[line] = made.get(line, 0) + 1
    thing = samples = None
