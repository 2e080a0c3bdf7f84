"""Keeps a gunicorn master running when a worker cannot boot while another worker serves.

When a worker exits with status 3 (it could not boot) or 4 (its application could not be loaded), the master stops all
workers and exits. That is right at the first start. Later it turns the loss of one worker into the loss of the
service: for example, if a worker is replaced in the minute in which a database is unavailable. So while another worker
of the same master serves, the exit status becomes 1. For that status a master starts another worker. The worker waits
for a back-off before it exits, because the master starts the next one at once.

All of this is loaded in the master before it forks, so a worker needs neither the agent's directory nor an import.
"""

import os
import signal
import time

from . import page, protocol

# For this status a master replaces the worker and keeps running.
STATUS = 1

# The back-off, in seconds, doubles with each consecutive worker that cannot boot.
SHORTEST, LONGEST = 1.0, 30.0

# A master kills a worker that sends no heartbeat for `timeout`. Boot and back-off together take at most this part of
# the timeout.
PART_OF_TIMEOUT = 0.8

TICK = 0.05

# Saved before gevent replaces `time.sleep`.
_sleep = time.sleep


# In the master: the heartbeat file of the worker that is being forked. In a worker: its own heartbeat file.
_own_heartbeat = None


def worker(module):
    """Records which workers serve. A worker sends its first heartbeat from its main loop."""
    initialise, notify_master, close_file = module.Worker.__init__, module.Worker.notify, module.WorkerTmp.close

    def __init__(self, *args, **kwargs):
        global _own_heartbeat
        initialise(self, *args, **kwargs)
        _own_heartbeat = self.tmp

    def close(self):
        # The supervisor recognises a worker by this file, so a worker keeps it open during its back-off.
        if self is not _own_heartbeat:
            close_file(self)

    def notify(self):
        result = notify_master(self)
        if page.slot[protocol.SERVES] == 0:
            try:
                page.serves(self.ppid)
            except Exception:
                page.swallowed()
        return result

    module.Worker.__init__, module.Worker.notify, module.WorkerTmp.close = __init__, notify, close


def arbiter(module):
    """Wraps `spawn_worker`, which never returns in the child. Each failure to boot is raised through it."""
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
                    if _replaces_status(self, master, begun, end.code):
                        end.code = STATUS
                except Exception:
                    page.swallowed()
            raise

    spawn_worker.__wrapped__ = original
    module.Arbiter.spawn_worker = spawn_worker


def _replaces_status(arbiter, master, begun, status):
    """Whether another worker serves, so that the master must not stop for this one. If so, waits for the back-off.

    RACE: two workers of the first start may fail at the same time. Each of them records that it does not serve before
    it checks the others. So neither of them takes the other for a worker that serves.
    """
    failures = page.fails_to_boot()
    if not is_served(master):
        return False
    wait = back_off(failures)
    timeout = getattr(arbiter, "timeout", 0) or 0
    if timeout:
        room = timeout * PART_OF_TIMEOUT - (time.monotonic() - begun)
        wait = max(0.0, min(wait, room))
    arbiter.log.warning(
        "Worker (pid:%s) failed with status %s, which would stop gunicorn. Another worker serves, so it exits with "
        "status %s instead, in %.1f s, and gunicorn starts a new worker (supervise)",
        os.getpid(),
        status,
        STATUS,
        wait,
    )
    _wait(wait, master)
    return True


def _wait(seconds, master):
    """Waits until the time is over, a signal asks this process to exit, or its master exits."""
    asked = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT):
        try:
            signal.signal(number, lambda *_: asked.append(1))
        except ValueError:
            # This is not the main thread, which alone may set handlers.
            break
    until = time.monotonic() + seconds
    while not asked and os.getppid() == master:
        left = until - time.monotonic()
        if left <= 0:
            return
        _sleep(min(left, TICK))


def is_served(master):
    """Whether a worker of `master` serves."""
    return any(_is_child_of(master, pid) for pid in page.servers_for(master))


def back_off(failures):
    """Seconds to wait after this number of consecutive failures."""
    return min(SHORTEST * 2 ** min(failures - 1, 10), LONGEST)


def _is_child_of(master, pid):
    """Whether the process is alive and a child of `master`. A slot of the page may belong to a dead worker."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
    except OSError:
        return False
    return int(parent) == master and state not in (b"Z", b"X")
