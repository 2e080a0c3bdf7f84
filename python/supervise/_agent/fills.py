"""Finds the line that fills a holder in the code of the app, for a report of a process that was not traced.

A line fills `NAME` if it stores an item in `NAME`, or calls a method of it such as `append`. So a line in the code is a
guess: it was not seen to run.
"""
from . import heap, introspect, source_locations

ADDERS = frozenset(("append", "appendleft", "add", "extend", "update", "setdefault", "insert", "put", "put_nowait",
                    "push", "register", "subscribe", "connect", "set", "store"))
LOADS = frozenset(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_ATTR", "LOAD_METHOD"))
STORES = frozenset(("STORE_SUBSCR",))
CODE = type(introspect.is_small.__code__)
# Maximum number of code objects that are read.
CODES = 4000


def codes():
    """The code objects of all functions of the app."""
    found = {}
    for one in heap.objects():
        if type(one) is introspect.FUNCTION and source_locations.is_app(one.__code__.co_filename):
            found[id(one.__code__)] = one.__code__
    one = None
    queue = list(found.values())
    while queue and len(found) < CODES:
        for code in queue.pop().co_consts:
            if type(code) is CODE and id(code) not in found:
                found[id(code)] = code
                queue.append(code)
    return list(found.values())


def line_of(name, known, budget):
    """(file, line, function) of a line that fills `name` in one of the known code objects, or None."""
    for code in known:
        if (name in code.co_names or name in code.co_freevars) and budget.left() > 0.05:
            line = filling(code, name)
            if line is not None:
                return code.co_filename, line, getattr(code, "co_qualname", code.co_name)
    return None


def filling(code, name):
    import dis
    line = loaded = None
    for step in dis.get_instructions(code):
        started = getattr(step, "line_number", None) or (step.starts_line if type(step.starts_line) is int else None)
        if started is not None and started != line:
            line, loaded = started, None
        if step.opname in LOADS and step.argval == name:
            loaded = line
        elif loaded is not None and (step.opname in STORES or step.argval in ADDERS):
            return loaded
    return None


def name_of(suspect):
    """The name by which the code calls the container of a suspect: the last attribute or global on its chain."""
    for text in reversed(suspect["chain"][1:]):
        if text.startswith("."):
            return text[1:].partition(" ")[0]
        if not text.startswith(("item of", "[", "value of", "key of")):
            return None
    return suspect["holder"].rpartition(".")[2] if suspect["holder"] else None


def traced_below(line, mine):
    """The line whose allocations were traced and came from a call at `line`, or None."""
    found = [(traced[0], key) for key, traced in mine.lines.items() if line in traced[4]]
    return max(found)[1] if found else None


def complete(listed, mine, budget):
    """Adds lines to the suspects that have none."""
    wanted = [(one, name_of(one)) for one in listed if one["where"] is None and name_of(one)]
    known = codes() if wanted and budget.left() > 0.1 else []
    for suspect, name in wanted:
        found = line_of(name, known, budget)
        below = traced_below(found[:2], mine) if found is not None else None
        if below is not None:
            suspect["where"], suspect["function"] = "%s:%d" % below, source_locations.function_at(*below)
        elif found is not None:
            suspect["where"], suspect["function"] = "%s:%d" % found[:2], found[2]
            suspect["note"] = suspect["note"] or "from the code: this line was not traced"
