"""Combines holders, lines and types in a short list, the greatest share of the growth first."""
from . import causes, source_locations, steps

LIMIT = 10
WHILE_IT_RAN = "memory outside Python grew while this line ran"
# A suspect with a smaller share of the growth is left out.
SMALLEST = 0.02
# A line with fewer and smaller blocks than these is not scaled up to all of the growth, but only by this factor.
FEW = 10
LITTLE = 64 << 10
SCALE_OF_FEW = 20
# No line is named for native memory if the lines account for less than this part of what grew while they were followed.
SEEN = 0.2
# Objects of Python probably own native memory if they have at least this part of it themselves.
OWNERS = 0.05
# Kinds of objects that own memory, and a number of them that is no accident.
OWNING = ("thread", "task", "handler", "logger", "resource")
MANY = 20
# A suspect without a line gets the line that allocated at least this part of its growth.
ADOPTED = 0.5
# Kinds of objects of which the code that they run tells more than the line that created them.
RUNNING = ("thread", "task", "generator", "exception", "greenlet")


def blank(**known):
    suspect = {"where": None, "function": None, "type": None, "count": 0, "bytes": 0, "growth_bytes": 0,
               "holder": None, "chain": [], "note": None}
    suspect.update(known)
    return suspect


class Group:
    """All measurements of one holder."""

    def __init__(self, way):
        self.way = way
        self.sums = {}
        self.targets = []
        self.lines = {}
        self.place = None

    def add(self, target, way, is_outer, mine):
        # The same object may be measured as an entry of a container and as an instance of its type, and the latter is
        # less certain.
        source = target.type if target.source == "type" else target.source
        # An inner container adds nothing to the outer container that holds it.
        if is_outer:
            half = 2 if target.source == "type" else 1
            self.sums[source] = self.sums.get(source, 0) + target.size // half
        self.targets.append((target.source == "grown" and is_outer, target.size, target, way))
        self.place = self.place or way.place or target.where
        for joined in [mine.joins.get(key, {}) for key in way.keys] + [mine.made.get(target.type_id, {})]:
            for line, times in joined.items():
                self.lines[line] = self.lines.get(line, 0) + times

    def suspect(self, python):
        """The suspect, with facts about its cause for the advice."""
        self.targets.sort(key=lambda one: one[:2], reverse=True)
        _, _, target, way = self.targets[0]
        samples = [one[2] for one in self.targets if one[2].source == "sample"]
        if len(samples) == 1 and "sample" in self.sums:
            # Only this sample has the holder, so it does not stand for others.
            self.sums["sample"] = samples[0].size // max(1, samples[0].count)
        size = max(list(self.sums.values()) + [0])
        suspect = blank(type=target.type, count=target.count, bytes=size, growth_bytes=min(size, python),
                        holder=way.holder, chain=way.chain[:12])
        types = set(way.types)
        for one in self.targets:
            types.update(one[3].types)
        kinds = {}
        for _, _, one, _ in self.targets:
            known = kinds.get(one.kind)
            if known is None or known[0] < one.count:
                kinds[one.kind] = (one.count, one.where, one.type)
        suspect["facts"] = {
            "kind": target.kind, "kinds": kinds, "types": types,
            "root": way.types[0] if way.types else None, "is_app": way.is_app, "entry": target.entry,
            "is_view": any([one[2].is_view for one in self.targets])}
        suspect["lines"] = self.lines
        runs = self.place is not None and target.kind in RUNNING and source_locations.is_app(self.place[0])
        if runs or self.place is not None and not self.lines:
            path, line, function = self.place
            suspect["where"], suspect["function"] = "%s:%d" % (path, line), function
        elif self.lines:
            put_line(suspect, max(self.lines, key=self.lines.get))
        return suspect


def name_of(target, way, groups):
    """The name of the group of a target. Without a name of the holder, objects that lead to the same object belong
    together, and objects that represent others of their type."""
    if way.holder is not None and way.holder not in steps.VAGUE:
        return way.holder
    if target.source == "grown" or way.keys[0] in groups:
        return way.keys[0]
    return "%s %s %s" % (way.holder, target.type, way.chain[0] if way.chain else "")


def by_holder(targets, ways, mine, hints, python):
    """One suspect for each holder. Several measurements of one holder are not added up: the greatest counts."""
    groups = {}
    for target, way in zip(targets, ways):
        if way.holder is None and target.reached() in hints:
            way.holder, way.chain = hints[target.reached()]
        if way.holder == "sys.modules":
            # Everything that a module defines is reachable from here. Modules that are loaded again and again have
            # a label of their own.
            continue
        outer = [one for one in targets if one.key in way.keys[:-1] and one.source == target.source]
        groups.setdefault(name_of(target, way, groups), Group(way)).add(target, way, not outer, mine)
    return [group.suspect(python) for group in groups.values()]


def put_line(suspect, line):
    suspect["where"] = "%s:%d" % line
    suspect["function"] = source_locations.function_at(*line)


def by_line(mine, python, part):
    """One suspect for each line whose allocations in a window were not freed. Its share of what the windows saw is its
    share of the growth, of which `part` is Python's."""
    real = {key: line for key, line in mine.lines.items() if not key[0].startswith("<")}
    total = max(sum([line[0] for line in real.values()]), mine.grown_in_windows * part)
    found = []
    for key, (size, count, windows, leaf, _) in sorted(real.items(), key=lambda one: one[1][0], reverse=True)[:8]:
        share = size / max(1, total)
        if mine.windows >= 3 and windows == 1:
            # Probably a request that was running at the end of one window, and not a leak that continues.
            share /= 4
        growth = share * python
        if count < FEW and size < LITTLE:
            growth = min(growth, size * SCALE_OF_FEW)
        suspect = blank(count=count, bytes=size, growth_bytes=int(growth))
        put_line(suspect, key)
        if leaf != key:
            suspect["note"] = "allocated in %s:%d" % (source_locations.short(leaf[0]), leaf[1])
        found.append(suspect)
    return found


def by_native(mine, native):
    """One suspect for each line that ran while memory outside Python grew. None if the lines saw too little of it."""
    grown = {line: size for line, size in mine.native_lines.items() if size > 0}
    total = sum(grown.values())
    found = []
    if total < SEEN * mine.followed:
        return found
    for line, size in sorted(grown.items(), key=lambda one: one[1], reverse=True)[:3]:
        suspect = blank(type="native memory", count=0, bytes=size, growth_bytes=int(size / total * native))
        put_line(suspect, line)
        suspect["note"] = WHILE_IT_RAN
        found.append(suspect)
    return found


def behind_native(holders, lines, native):
    """Attributes native memory to the objects that probably own it: instances of classes with memory of their own, if
    many more of them exist, or else what grew most of Python's objects, if that is much."""
    known = [one for one in holders if causes.resources(causes.Suspect(one, None))]
    if known:
        top = max(known, key=lambda one: one["facts"]["kinds"]["resource"][0])
    elif holders and not lines:
        top = max(holders, key=lambda one: one["growth_bytes"])
        known = top["growth_bytes"] >= OWNERS * native
    if known:
        top["growth_bytes"] = max(top["growth_bytes"], native // (2 if lines else 1))
        top["note"] = "probably the owners of the memory outside Python"


def join(holders, lines, python):
    """Merges the entries of the two lists that name the same line, and puts the most certain ones first."""
    merged = list(holders)
    for line in lines:
        same = [one for one in merged if one["where"] == line["where"]]
        also = [one for one in merged if line["where"] in ["%s:%d" % key for key in one.get("lines", ())]]
        if same:
            top = max(same, key=lambda one: one["growth_bytes"])
            top["growth_bytes"] = max(top["growth_bytes"], line["growth_bytes"])
            top["note"] = top["note"] or line["note"]
        elif also and line["growth_bytes"] < 0.25 * python:
            continue
        else:
            merged.append(line)
    floor = SMALLEST * python
    adopt_line(merged, floor)
    merged.sort(key=lambda one: (is_placed(one), one["growth_bytes"]), reverse=True)
    # The first three entries contain both the best line and the best holder.
    for test in ("where", "holder"):
        place = [index for index, one in enumerate(merged) if one[test] is not None]
        if place and place[0] > 2:
            merged.insert(2 if test == "where" else 1, merged.pop(place[0]))
    explained = sum([one["growth_bytes"] for one in merged if is_placed(one) and one["holder"]])
    kept = [one for one in merged if one["growth_bytes"] > floor or explained < python / 2 and is_telling(one)]
    return kept[:LIMIT]


def is_placed(one):
    """Whether a suspect has a line or a holder in Python. Without either it tells little."""
    return one["where"] is not None or one["holder"] not in (None, steps.C_CODE)


def is_telling(one):
    """Whether many objects of a special kind have the holder. The memory that they own may be unknown to gc."""
    kinds = (one.get("facts") or {}).get("kinds") or {}
    return any([kinds[kind][0] >= MANY for kind in OWNING if kind in kinds])


def adopt_line(merged, floor):
    """Gives the line that allocated most within windows to the greatest suspect with a holder, if that has no line."""
    lines = [one for one in merged if one["where"] and not one.get("facts") and one["note"] != WHILE_IT_RAN]
    held = [one for one in merged if one.get("facts") and is_placed(one)]
    if lines and held:
        line = max(lines, key=lambda one: one["growth_bytes"])
        top = max(held, key=lambda one: one["growth_bytes"])
        if top["where"] is None and top["growth_bytes"] > floor and line["growth_bytes"] >= ADOPTED * top["growth_bytes"]:
            merged.remove(line)
            top.update(where=line["where"], function=line["function"], note=top["note"] or line["note"])
