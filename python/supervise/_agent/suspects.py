"""Joins holders, lines and types into a short list, the greatest share of the growth first."""
from . import places

LIMIT = 10


def blank(**known):
    suspect = {"where": None, "function": None, "type": None, "count": 0, "bytes": 0, "growth_bytes": 0,
               "holder": None, "chain": [], "note": None}
    suspect.update(known)
    return suspect


def by_holder(targets, ways, mine, hints, python):
    """One suspect for each holder. Several measures of one holder are not added up: the greatest counts."""
    groups = {}
    for target, (holder, chain, place, way) in zip(targets, ways):
        if holder is None and target.source == "type" and target.type_id in hints:
            holder, chain = hints[target.type_id]
        name = holder or "%s %s" % (target.type, chain[0] if chain else "")
        group = groups.setdefault(name, {"holder": holder, "sums": {}, "targets": [], "lines": {}, "place": None})
        source = target.type if target.source == "type" else target.source
        # An inner container adds nothing to the outer one that it hangs on.
        outer = [one for one in targets if one.key in way[:-1] and one.source == target.source]
        if not outer:
            half = 2 if target.source == "type" else 1
            group["sums"][source] = group["sums"].get(source, 0) + target.size // half
        group["targets"].append((target.source == "grown" and not outer, target.size, target, chain, len(way)))
        group["place"] = group["place"] or place or target.where
        for key in way:
            for line, times in mine.joins.get(key, {}).items():
                group["lines"][line] = group["lines"].get(line, 0) + times
    found = []
    for group in groups.values():
        if group["holder"] is not None and group["holder"].startswith(("_supervise_agent", "sys.modules")):
            continue
        group["targets"].sort(key=lambda one: one[:2], reverse=True)
        _, _, target, chain, _ = group["targets"][0]
        size = max(list(group["sums"].values()) + [0])
        suspect = blank(type=target.type, count=target.count, bytes=size, growth_bytes=min(size, python),
                        holder=group["holder"], chain=chain[:12])
        suspect["kind"] = target.kind
        suspect["lines"] = group["lines"]
        if group["lines"]:
            line = max(group["lines"], key=group["lines"].get)
            put_line(suspect, line)
        elif group["place"] is not None:
            path, line, function = group["place"]
            suspect["where"], suspect["function"] = "%s:%d" % (path, line), function
        found.append(suspect)
    return found


def put_line(suspect, line):
    suspect["where"] = "%s:%d" % line
    suspect["function"] = places.function_at(*line)


def by_line(mine, python):
    """One suspect for each line that kept what it allocated in a window; its share of all is its share of the growth."""
    real = {key: line for key, line in mine.lines.items() if not key[0].startswith("<")}
    total = sum([line[0] for line in real.values()])
    found = []
    if not total:
        return found
    for key, (size, count, windows, leaf) in sorted(real.items(), key=lambda one: one[1][0], reverse=True)[:8]:
        share = size / total
        if mine.windows >= 3 and windows == 1:
            # A request in flight at the end of one window, not a leak that goes on.
            share /= 4
        suspect = blank(count=count, bytes=size, growth_bytes=int(share * python))
        put_line(suspect, key)
        if leaf != key:
            suspect["note"] = "allocated in %s:%d" % (places.short(leaf[0]), leaf[1])
        found.append(suspect)
    return found


def by_native(mine, native):
    """One suspect for each line that ran while memory outside Python grew."""
    grown = {line: size for line, size in mine.native_lines.items() if size > 0}
    total = sum(grown.values())
    found = []
    for line, size in sorted(grown.items(), key=lambda one: one[1], reverse=True)[:3]:
        suspect = blank(type="native memory", count=0, bytes=size, growth_bytes=int(size / total * native))
        put_line(suspect, line)
        suspect["note"] = "memory outside Python grew while this line ran"
        found.append(suspect)
    return found


def join(holders, lines, python):
    """Merges the two lists where they speak of the same line, and puts the surest first."""
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
    merged.sort(key=lambda one: one["growth_bytes"], reverse=True)
    # The best line and the best holder are both among the first three.
    for test in ("where", "holder"):
        place = [index for index, one in enumerate(merged) if one[test] is not None]
        if place and place[0] > 2:
            merged.insert(2 if test == "where" else 1, merged.pop(place[0]))
    floor = 0.02 * python
    kept = [one for index, one in enumerate(merged) if index < 3 or one["growth_bytes"] > floor]
    return [one for one in kept if one["growth_bytes"] > 0][:LIMIT]
