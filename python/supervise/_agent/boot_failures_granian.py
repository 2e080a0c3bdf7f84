"""Keeps granian running when a worker exits while another worker is alive.

When a worker exits, granian stops all the others, unless it was told to start failed workers again; and then it stops
all if the same one exits twice within 5.5 seconds. So one worker could never be replaced from outside. While another
worker lives, granian is made to start a new one: at once for a worker that has left, and after a back-off for one that
could not start.
"""

import signal
import time

from . import page
from .boot_failures import back_off

# A worker that ends this soon has probably not served. Seconds.
BOOT = 5.0


def parent(module):
    """Wraps the thread that waits for the end of a worker."""
    original = module.AbstractWorker._watcher
    startup = module.AbstractServer.startup

    def _watcher(self):
        try:
            _prepare(self)
        except Exception:
            page.swallowed()
        return original(self)

    def guarded_startup(self, *args, **kwargs):
        self._supervise_configured = self.respawn_failed_workers
        result = startup(self, *args, **kwargs)
        try:
            # The supervisor sees by this handler that a worker may leave. The signal itself does nothing.
            signal.signal(signal.SIGUSR2, lambda *_: None)
        except Exception:
            page.swallowed()
        return result

    module.AbstractWorker._watcher = _watcher
    module.AbstractServer.startup = guarded_startup


def _prepare(worker):
    """Waits for the end of a worker, and sets what granian does then."""
    process, server = worker.inner, worker.parent
    # Also the thread that granian itself starts for this calls `join`, and `multiprocessing` allows that.
    process.join()
    if worker.interrupt_by_parent or server.interrupt_signal:
        return
    others = [one for one in server.wrks if one is not worker and one.is_alive()]
    if not others:
        server.respawn_failed_workers = server._supervise_configured
        return
    if process.exitcode and time.monotonic() - worker.birth < BOOT:
        until = time.monotonic() + back_off(page.counts_failure())
        while time.monotonic() < until and not server.interrupt_signal:
            time.sleep(0.1)
    server.respawned_wrks.pop(worker.idx, None)
    server.respawn_failed_workers = True
