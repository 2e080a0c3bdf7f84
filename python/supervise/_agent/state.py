"""The agent's state between the requests to one process: figures, ids and lines, but no object of the app."""
import posix
import sys


class State:
    def __init__(self):
        self.pid = posix.getpid()
        # The first census, and the allocators at that time.
        self.base = None
        # A base that is not complete yet, and the iterator that takes its parts.
        self.partial = None
        self.parts = None
        # How often it was not taken, because the process was busy.
        self.refused = 0
        # (time of the start, whether the agent started the tracing)
        self.window = None
        self.windows = 0
        # Whether the process may be interrupted for long, because it has no clients.
        self.may_interrupt = False
        self.traced = 0.0
        # Bytes that the allocators gave out within windows, and the part of these that tracemalloc saw.
        self.at_open = None
        self.grown_in_windows = 0
        self.traced_in_windows = 0
        # Follows lines within a window if the growth is native; its results are {(file, line): bytes}.
        self.follower = None
        self.native_lines = {}
        # Bytes by which memory outside Python grew while lines were followed.
        self.followed = 0
        # {(file, line): [bytes, count, windows, leaf, lines of the app in the traces]}
        self.lines = {}
        # {id of a container: {(file, line): times}}
        self.joins = {}
        # {id of a type: {(file, line): times}}, for the newest instances of types that grew
        self.made = {}
        self.joined = 0.0
        self.join_price = 0.0
        self.collections = 0
        self.collected = 0
        self.cycles_freed = 0
        self.pages_freed = 0

    def has_traced(self):
        """Whether windows have seen enough growth to tell what it is."""
        return self.grown_in_windows >= 1 << 20

    def traced_part(self):
        """Python's part of the memory that the allocators gave out within windows; 0 if that is too little to tell."""
        if not self.has_traced():
            return 0.0
        return min(1.0, self.traced_in_windows / self.grown_in_windows)


_current = None


def of_process():
    """The state of this process. A forked child starts with an empty state."""
    global _current
    if _current is None or _current.pid != posix.getpid():
        _current = State()
    return _current


def note_collection(found, cycles, pages):
    mine = of_process()
    mine.collections += 1
    mine.collected += found
    if mine.base is not None or pages > 0:
        mine.cycles_freed += cycles
        mine.pages_freed += max(0, pages)


def own_ids():
    """The ids of the objects of the state, so that a census does not take them for objects of the app."""
    mine = of_process()
    found = set()
    package = __name__.rpartition(".")[0] + "."
    for name, module in list(sys.modules.items()):
        if type(name) is str and name.startswith(package):
            found.add(id(module.__dict__))
            found.update(map(id, module.__dict__.values()))
    found |= {id(mine), id(mine.__dict__), id(mine.lines), id(mine.joins), id(mine.made)}
    if mine.base is not None:
        for part in (mine.base, mine.base.__dict__, mine.base.lengths, mine.base.types, mine.base.blobs):
            found.add(id(part))
    return found
