"""What the agent remembers between two requests of one process: figures, ids and lines, never an object of the app."""
import posix


class Books:
    def __init__(self):
        self.pid = posix.getpid()
        # The first census, and the allocators at that time.
        self.base = None
        # (since, whether it was we who started tracing)
        self.window = None
        self.windows = 0
        self.traced = 0.0
        # What the allocators handed out within windows, and what of it tracemalloc saw.
        self.at_open = None
        self.grown_in_windows = 0
        self.traced_in_windows = 0
        # Follows lines within a window where growth is native; {(file, line): bytes} that it found.
        self.follower = None
        self.native_lines = {}
        # {(file, line): [bytes, count, windows, leaf]}
        self.lines = {}
        # {id of a container: {(file, line): times}}
        self.joins = {}
        self.joined = 0.0
        self.join_price = 0.0
        self.collections = 0
        self.collected = 0
        self.cycles_freed = 0
        self.pages_freed = 0

    def traced_part(self):
        """The part of what the allocators handed out within windows that was Python's; 0 where too little was seen."""
        if self.grown_in_windows < 1 << 20:
            return 0.0
        return min(1.0, self.traced_in_windows / self.grown_in_windows)


current = None


def books():
    """The books of this process: a forked child starts with empty ones."""
    global current
    if current is None or current.pid != posix.getpid():
        current = Books()
    return current


def note_collection(found, cycles, pages):
    mine = books()
    mine.collections += 1
    mine.collected += found
    if mine.base is not None or pages > 0:
        mine.cycles_freed += cycles
        mine.pages_freed += max(0, pages)


def own_ids():
    """The ids of what the books hold, so that a census does not take it for the app's."""
    mine = books()
    found = {id(mine), id(mine.__dict__), id(mine.lines), id(mine.joins)}
    if mine.base is not None:
        for part in (mine.base, mine.base.__dict__, mine.base.lengths, mine.base.types, mine.base.blobs):
            found.add(id(part))
    return found
