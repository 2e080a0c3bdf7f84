"""Keeps a gunicorn master alive when a worker that it starts cannot boot while another one serves.

A master that sees a worker exit with status 3 (it could not boot) or 4 (its application could not be loaded) stops all
workers and exits. That is right at the first start. Later, when a database is away for a minute and a worker is
replaced in that minute, it turns the loss of one worker into the loss of the service. So while another worker of the
same master serves, the exit status becomes 1, for which a master starts another worker. A back-off comes before it,
because the master starts the next one at once.

Everything here is loaded in the master, before it forks: a worker needs neither the agent's directory nor an import.
"""

import os
import signal
import time

from . import page

# For this status a master replaces the worker and goes on.
STATUS = 1

# The back-off doubles with each worker in a row that cannot boot, in seconds.
SHORTEST, LONGEST = 1.0, 30.0

# A master kills a worker that is silent for `timeout`. Boot and back-off together take this part of it at most.
PART_OF_TIMEOUT = 0.8

TICK = 0.05

# Kept from before gevent replaces `time.sleep`.
_sleep = time.sleep


# The heartbeat file of the worker that is being forked; in a worker its own.
_own_heartbeat = None


def worker(module):
    """Notes which workers serve: the first heartbeat comes from the worker's main loop."""
    initialise, notify_master, close_file = module.Worker.__init__, module.Worker.notify, module.WorkerTmp.close

    def __init__(self, *args, **kwargs):
        global _own_heartbeat
        initialise(self, *args, **kwargs)
        _own_heartbeat = self.tmp

    def close(self):
        # The supervisor recognises a worker by this file, so a worker in its back-off keeps it open until it exits.
        if self is not _own_heartbeat:
            close_file(self)

    def notify(self):
        result = notify_master(self)
        if page.slot[page.SERVES] == 0:
            try:
                page.serves(self.ppid)
            except Exception:
                page.swallowed()
        return result

    module.Worker.__init__, module.Worker.notify, module.WorkerTmp.close = __init__, notify, close


def arbiter(module):
    """Puts the guard around `spawn_worker`, which never returns in the child: each failure to boot passes here."""
    original = module.Arbiter.spawn_worker
    halting = (module.Arbiter.WORKER_BOOT_ERROR, module.Arbiter.APP_LOAD_ERROR)

    def spawn_worker(self, *args, **kwargs):
        global _own_heartbeat
        master = os.getpid()
        begun = time.monotonic()
        try:
            pid = original(self, *args, **kwargs)
            _own_heartbeat = None
            return pid
        except SystemExit as end:
            if end.code in halting and os.getpid() != master:
                try:
                    if _stands_in(self, master, begun, end.code):
                        end.code = STATUS
                except Exception:
                    page.swallowed()
            raise

    spawn_worker.__wrapped__ = original
    module.Arbiter.spawn_worker = spawn_worker


def _stands_in(arbiter, master, begun, status):
    """Whether another worker serves, so that the master may not stop for this one; then waits for the back-off.

    RACE: two workers of a first start fail at the same time. Each says that it does not serve before it looks for
    others, so that they do not take each other for a worker that serves.
    """
    failures = page.fails_to_boot()
    if not any(_is_child_of(master, pid) for pid in page.servers_for(master)):
        return False
    wait = min(SHORTEST * 2 ** min(failures - 1, 10), LONGEST)
    timeout = getattr(arbiter, "timeout", 0) or 0
    if timeout:
        room = timeout * PART_OF_TIMEOUT - (time.monotonic() - begun)
        wait = max(0.0, min(wait, room))
    arbiter.log.warning(
        "Worker (pid:%s) failed with status %s, for which gunicorn would stop. Another worker serves, so it exits with "
        "status %s instead, in %.1f s, and gunicorn starts the next one (supervise)",
        os.getpid(),
        status,
        STATUS,
        wait,
    )
    _wait(wait, master)
    return True


def _wait(seconds, master):
    """Waits; a signal that asks this process to end, or the end of its master, ends the wait."""
    asked = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT):
        try:
            signal.signal(number, lambda *_: asked.append(1))
        except ValueError:
            # Not the main thread: the handlers stay as they are.
            break
    until = time.monotonic() + seconds
    while not asked and os.getppid() == master:
        left = until - time.monotonic()
        if left <= 0:
            return
        _sleep(min(left, TICK))


def _is_child_of(master, pid):
    """Whether the process is alive and the child of `master`: a slot of the page may be a dead worker's."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
    except OSError:
        return False
    return int(parent) == master and state not in (b"Z", b"X")
