"""This process's slot on the page it shares with the supervisor: claimed once, written without locks.

A slot is 16 words; the names below are their places. Before a slot is claimed, and when the page is
full, the same words go to a private sink, so that no caller has to ask.
"""

import _thread
import fcntl
import mmap
import os
import time

from . import boot

PID, STARTED, FINISHED, IGNORED, BEGUN_NS, DONE_NS, DRAIN, ERRORS, FLAGS, READY_NS, TOLD, SERVES = range(12)

# Position of a word in the header, before the first slot: how many workers in a row could not boot.
FAILED_BOOTS = 3

# The inodes of the sockets that this process's server accepts from.
LISTENERS = range(12, 16)

# Bits of FLAGS.
COUNTING, TRACING, DRAINING = 1, 2, 4

SLOT_BYTES = 128
MAGIC = 0x31505553

# A claimant may be stopped while it holds the lock; a worker's start must not hang on that.
PATIENCE = 100
_pause = time.sleep

slot = memoryview(bytearray(SLOT_BYTES)).cast("Q")
claimed = False

_lock = _thread.allocate_lock()
_on_change = []
_listeners = set()


def _open():
    """Maps the page. Its descriptor is kept, because a worker may give up the right to open it again."""
    fd = boot.high(os.open(os.environ["SUPERVISE_AGENT"] + "/page", os.O_RDWR | os.O_CLOEXEC))
    page = memoryview(mmap.mmap(fd, 0)).cast("Q")
    if page[0] != MAGIC or page[2] != SLOT_BYTES:
        raise ValueError("a page of another make")
    return fd, page


_fd, _page = _open()


def on_change(listener):
    """Has `listener()` called whenever `slot` has become another: after a claim and after a fork."""
    _on_change.append(listener)
    listener()


def claim():
    """Takes a free slot for this process, once."""
    with _lock:
        if not claimed:
            _claim()


def ready():
    """Says that the application is loaded."""
    claim()
    slot[READY_NS] = time.monotonic_ns()


def listens(sockets):
    """Notes which sockets the server accepts from, so that a stop closes these and no others.

    A server that runs in another thread than the main thread belongs to the application, and is not noted.
    """
    # The main thread has the number of its process (gettid(2)). `threading` is not used: gevent replaces it.
    if _thread.get_native_id() != os.getpid():
        return
    claim()
    _listeners.update(os.fstat(sock.fileno()).st_ino for sock in sockets)
    # If there are more sockets than places, none is named, and the supervisor finds them as without the agent.
    named = sorted(_listeners) if len(_listeners) <= len(LISTENERS) else []
    for place, inode in zip(LISTENERS, named + [0] * len(LISTENERS)):
        slot[place] = inode


def serves(master):
    """Says that this worker has begun to serve for `master`, and that its application can boot."""
    claim()
    slot[SERVES] = master
    _page[FAILED_BOOTS] = 0


def fails_to_boot():
    """Says that this worker does not serve. Returns how many workers in a row could not boot, with this one."""
    slot[SERVES] = 0
    _page[FAILED_BOOTS] += 1
    return _page[FAILED_BOOTS]


def servers_for(master):
    """The pids of all workers that have begun to serve for `master`; some may have ended since."""
    bases = range(16, 16 * (1 + _page[1]), 16)
    return [_page[base] for base in bases if _page[base + SERVES] == master and _page[base]]


def flag(bit, on=True):
    """Sets or clears one bit of FLAGS."""
    slot[FLAGS] = slot[FLAGS] | bit if on else slot[FLAGS] & ~bit


def swallowed():
    """Counts an exception that stayed in the agent."""
    slot[ERRORS] += 1


def _claim():
    global slot, claimed
    # The lock is one of POSIX: it belongs to the process, so a forked child does not own its parent's.
    for attempt in range(PATIENCE):
        try:
            fcntl.lockf(_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            _pause(0.005)
    else:
        return
    try:
        pid = os.getpid()
        for base in range(16, 16 * (1 + _page[1]), 16):
            if _page[base] in (0, pid):
                break
        else:
            claimed = True
            return
        mine = _page[base : base + 16]
        mine[PID] = 0
        for word in range(1, 16):
            mine[word] = slot[word] if word in (ERRORS, FLAGS, DRAIN) else 0
        # The pid comes last: until then the supervisor sees no slot.
        mine[PID] = pid
        slot = mine
        claimed = True
    finally:
        fcntl.lockf(_fd, fcntl.LOCK_UN)
    for listener in _on_change:
        listener()


def _forked():
    """A child inherits the hooks, never the slot: it claims its own when it has something to count."""
    global slot, claimed, _lock
    flags = slot[FLAGS]
    slot = memoryview(bytearray(SLOT_BYTES)).cast("Q")
    slot[FLAGS] = flags
    claimed = False
    _listeners.clear()
    _lock = _thread.allocate_lock()
    for listener in _on_change:
        listener()


os.register_at_fork(after_in_child=_forked)
