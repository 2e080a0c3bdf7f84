"""The slot of this process on the page that it shares with the supervisor: claimed once, written without locks.

`protocol.py` names the words of a slot. Before a slot is claimed, and if the page is full, the same words are written
to a private sink, so that callers do not have to check.
"""

import _thread
import fcntl
import mmap
import os
import time

from . import boot, protocol

# Another process may be stopped while it holds the lock. A worker must start nevertheless, so it gives up after this
# many attempts.
ATTEMPTS = 100
_pause = time.sleep

# The words that are copied from the sink to the slot of a process.
_KEPT = (protocol.ERRORS, protocol.FLAGS, protocol.DRAIN)

slot = protocol.sink()
routes = protocol.area_sink()
claimed = False

_lock = _thread.allocate_lock()
_on_change = []
_listeners = set()


def _open():
    """Maps the page. The descriptor stays open, because a worker may drop the privileges to open the page again."""
    fd = boot.high(os.open(os.environ["SUPERVISE_AGENT"] + "/page", os.O_RDWR | os.O_CLOEXEC))
    page = protocol.words(mmap.mmap(fd, 0))
    if not protocol.is_understood(page):
        raise ValueError("the page has another version")
    return fd, page


_fd, _page = _open()


def on_change(listener):
    """Calls `listener()` now and whenever `slot` has changed: after a claim and after a fork."""
    _on_change.append(listener)
    listener()


def claim():
    """Takes a free slot for this process if it has none."""
    with _lock:
        if not claimed:
            _claim()


def ready():
    """Reports that the application is loaded."""
    claim()
    slot[protocol.READY_NS] = time.monotonic_ns()


def listens(sockets):
    """Records the sockets from which the server accepts, so that a stop closes only these.

    A server that does not run in the main thread belongs to the application, and its sockets are not recorded.
    """
    # The thread id of the main thread is the process id (gettid(2)). `threading` is not used: gevent replaces it.
    if _thread.get_native_id() != os.getpid():
        return
    claim()
    _listeners.update(os.fstat(sock.fileno()).st_ino for sock in sockets)
    # If there are more sockets than words, none is recorded, and the supervisor finds the sockets without the agent.
    words = protocol.LISTENERS
    named = sorted(_listeners) if len(_listeners) <= len(words) else []
    for word, inode in zip(words, named + [0] * len(words)):
        slot[word] = inode


def serves(master):
    """Reports that this worker has begun to serve for `master`, and so that its application can boot."""
    claim()
    slot[protocol.SERVES] = master
    _page[protocol.FAILED_BOOTS] = 0


def fails_to_boot():
    """Reports that this worker does not serve. Returns the number of consecutive workers that could not boot, this one
    included."""
    slot[protocol.SERVES] = 0
    return counts_failure()


def counts_failure():
    """Counts a worker that could not boot. Returns the number of consecutive ones."""
    _page[protocol.FAILED_BOOTS] += 1
    return _page[protocol.FAILED_BOOTS]


def servers_for(master):
    """The pids of all workers that have begun to serve for `master`. Some may have exited since."""
    bases = protocol.bases(_page)
    return [_page[base] for base in bases if _page[base + protocol.SERVES] == master and _page[base]]


def flag(bit, on=True):
    """Sets or clears one bit of FLAGS."""
    flags = slot[protocol.FLAGS]
    slot[protocol.FLAGS] = flags | bit if on else flags & ~bit


def swallowed():
    """Counts an exception that the agent has swallowed."""
    slot[protocol.ERRORS] += 1


def _claim():
    global slot, routes, claimed
    # This is a POSIX lock: it belongs to the process, so a forked child does not hold the lock of its parent.
    for attempt in range(ATTEMPTS):
        try:
            fcntl.lockf(_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            _pause(0.005)
    else:
        return
    try:
        pid = os.getpid()
        for base in protocol.bases(_page):
            if _page[base] in (0, pid):
                break
        else:
            claimed = True
            return
        mine = _page[base : base + protocol.SLOT_WORDS]
        mine[protocol.PID] = 0
        for word in range(1, protocol.SLOT_WORDS):
            mine[word] = slot[word] if word in _KEPT else 0
        area = protocol.area(_page, base)
        if area is not None:
            area[:] = protocol.area_sink()
            routes = area
        # The pid is written last, because the supervisor ignores a slot without a pid.
        mine[protocol.PID] = pid
        slot = mine
        claimed = True
    finally:
        fcntl.lockf(_fd, fcntl.LOCK_UN)
    for listener in _on_change:
        listener()


def _forked():
    """A child inherits the hooks but not the slot: it claims its own when it has something to count."""
    global slot, routes, claimed, _lock
    flags = slot[protocol.FLAGS]
    slot = protocol.sink()
    slot[protocol.FLAGS] = flags
    routes = protocol.area_sink()
    claimed = False
    _listeners.clear()
    _lock = _thread.allocate_lock()
    for listener in _on_change:
        listener()


os.register_at_fork(after_in_child=_forked)
