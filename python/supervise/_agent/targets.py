"""Chooses the objects whose holders are worth a search: what has grown most, and a fair sample of the rest."""
import sys
from collections import OrderedDict, defaultdict, deque

from . import books, census as counting, heap, looks

KNOWN = 60
FRESH = 10
BLOBS = 8
SPECIAL = ("thread", "task", "generator", "coroutine", "exception", "class", "handler", "greenlet")


class Target:
    """One object to search for: what it stands for, in bytes and in number."""

    def __init__(self, kind, thing, count, size, source):
        self.key = id(thing)
        self.kind = kind
        self.type = looks.type_name(type(thing))
        self.count = count
        self.size = int(size)
        self.source = source
        self.where = None
        self.note = None


def entry_bytes(thing, samples=12):
    """The mean weight of the newest entries, counting what only one of them leads to."""
    base = looks.base_of(type(thing))
    pairs = looks.newest(thing, base, samples)
    if not pairs:
        return 0
    met = {}
    for pair in pairs:
        weights = {}
        for part in pair:
            if part is not None and not looks.is_scenery(part):
                weights.update(looks.weigh(part, 120))
        for key, size in weights.items():
            known = met.get(key)
            met[key] = (size, 1 if known is None else known[1] + 1)
    own = sum([size for size, times in met.values() if times == 1])
    if len(pairs) == 1 and own == 0:
        own = sum([size for size, times in met.values()])
    return own / len(pairs) + looks.size(thing) / max(1, base.__len__(thing))


def choose(box, census, base, things):
    """Targets, and into `things` the objects themselves."""
    found = []
    grown = counting.grown(census, base)
    names = {id(module.__dict__) for module in list(sys.modules.values()) if type(module) is looks.MODULE_TYPE}
    known = [(gain, thing) for gain, old, thing in grown if old and id(thing) not in names]
    fresh = [(gain, thing) for gain, old, thing in grown if not old and id(thing) not in names]
    del grown
    for gain, thing in known[:KNOWN] + fresh[:6]:
        if box.left() < 0.3:
            box.missing.append("containers: not all weighed")
            break
        add(found, things, Target("container", thing, gain, gain * entry_bytes(thing), "grown"), thing)
    stride = max(1, len(fresh) // FRESH)
    # Only what is worth it: a sample of many stands for all of them.
    for gain, thing in fresh[6::stride]:
        if box.left() < 0.3 or len(fresh) < 40:
            break
        weight = sum(looks.weigh(thing, 80).values())
        add(found, things, Target("container", thing, stride, weight * stride, "sample"), thing)
    blobs = [(size - (base.blobs.get(id(thing), 0) if base is not None else 0), thing) for size, thing in census.blobs]
    blobs = sorted([blob for blob in blobs if blob[0] > counting.BLOB // 2], key=counting.first, reverse=True)
    stride = max(1, len(blobs) // BLOBS)
    for size, thing in blobs[::stride]:
        add(found, things, Target("blob", thing, stride, size * stride, "blob"), thing)
    special(box, census, base, found, things)
    # A search is as dear as its breadth.
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


def special(box, census, base, found, things):
    """Types that grew: the ones that mean something, and instances in great number."""
    grown = counting.grown_types(census, base)
    wanted = {}
    for gain, kind in grown[:400]:
        meaning = meaning_of(kind)
        plain = looks.module_of(kind) in ("builtins", "collections", "_thread", "functools", "types")
        if meaning is not None or (not plain and gain >= 20 and len(wanted) < 24):
            wanted[id(kind)] = (gain, meaning, [])
    if not wanted or box.left() < 0.3 + census.total * 3e-7:
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
        if not samples:
            continue
        weights = [sum(looks.weigh(one, 100).values()) for one in samples[:6]]
        chosen.append((gain * sorted(weights)[len(weights) // 2], gain, meaning, samples))
    chosen.sort(key=counting.first, reverse=True)
    one = None
    for size, gain, meaning, samples in chosen[:8]:
        kind = type(samples[0])
        # The youngest may still be in use; the one that many are like is from the middle.
        for one in (samples[len(samples) // 2], samples[-1]):
            target = Target(meaning or "instance", one, gain, size, "type")
            target.type_id = id(kind)
            target.where = place_of(one, meaning)
            add(found, things, target, one)
    samples = one = None


def meaning_of(kind):
    name = looks._QUALNAME(kind)
    module = looks.module_of(kind)
    if module == "builtins" and name in ("generator", "coroutine", "async_generator"):
        return "generator"
    if issubclass(kind, BaseException):
        return "exception"
    if issubclass(kind, type):
        return "class"
    if looks.inherits(kind, "threading", "Thread"):
        return "thread"
    if looks.inherits(kind, "_asyncio", "Task") or looks.inherits(kind, "asyncio.tasks", "Task"):
        return "task"
    if looks.inherits(kind, "logging", "Handler"):
        return "handler"
    if "greenlet" in sys.modules and name == "Greenlet":
        return "greenlet"
    return None


def place_of(thing, meaning):
    """(file, line, function) of the code that an object runs or has run."""
    try:
        code = None
        if meaning == "generator":
            names = looks.class_dict(type(thing))
            for name in ("gi_code", "cr_code", "ag_code"):
                if name in names:
                    code = names[name].__get__(thing)
        elif meaning == "thread":
            code = function_code(dict(looks.attributes(thing)).get("_target"))
        elif meaning == "task":
            for name in ("_coro",):
                for base in looks.mro(type(thing)):
                    door = looks.class_dict(base).get(name)
                    if type(door) is looks.GETSET:
                        return place_of(door.__get__(thing), "generator")
        elif meaning == "exception":
            step = BaseException.__dict__["__traceback__"].__get__(thing)
            last = None
            from . import places
            while step is not None:
                code = step.tb_frame.f_code
                if places.is_app(code.co_filename) or last is None:
                    last = (code.co_filename, step.tb_lineno, code.co_name)
                step = step.tb_next
            return last
        if code is not None:
            return code.co_filename, code.co_firstlineno, code.co_name
    except Exception:
        pass
    return None


def function_code(thing):
    kind = type(thing)
    if kind is type(function_code):
        return thing.__code__
    if kind is type(Target.__init__.__get__(1)):
        return function_code(thing.__func__)
    return None


def line_joins(look_up, mine):
    """While tracing is on: by which lines the newest entries of grown containers were allocated.

    Every allocation is dear now, so this is a census without its counts: containers only.
    """
    import gc
    from . import places
    lengths = mine.base.lengths if mine.base is not None else {}
    hidden = books.own_ids()
    things = [one for one in heap.objects()
              if type(one) is dict or type(one) is list or type(one) is set or type(one) is deque
              or type(one) is OrderedDict or type(one) is defaultdict]
    for name, names in looks.modules().values():
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
        for pair in looks.newest(thing, looks.base_of(type(thing)), 16):
            for part in reversed(pair):
                frames = look_up(part) if part is not None else None
                if frames and not any([places.is_ours(frame[0]) for frame in frames]):
                    key = frames[places.choose(frames)]
                    lines[key] = lines.get(key, 0) + 1
                    break
        if lines and len(mine.joins) < 2000:
            joined = mine.joins.setdefault(id(thing), {})
            for key, times in lines.items():
                joined[key] = joined.get(key, 0) + times
