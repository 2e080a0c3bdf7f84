"""Keeps the parent of hypercorn's workers running when a worker fails while another worker serves.

When a worker exits with another status than 0, the parent stops all workers (`hypercorn.run`). That is right at the
first start. Later it turns the loss of one worker into the loss of the service. So while another worker serves, the
parent sees status 0, for which it starts another worker, but only after a back-off.
"""

import os
import time

from . import page
from .boot_failures import back_off, is_served

# Seconds.
TICK = 0.1

# The back-off before the next worker is started. The parent does nothing else meanwhile.
_wait = 0.0


def parent(module):
    """Hooks the two functions with which the parent collects workers that have exited, and starts others."""
    join_exited, populate = module._join_exited, module._populate

    def guarded_join_exited(processes):
        status = join_exited(processes)
        try:
            return 0 if status and _is_replaced() else status
        except Exception:
            page.swallowed()
            return status

    def guarded_populate(processes, config, worker_func, sockets, shutdown_event, ctx):
        global _wait
        until, _wait = time.monotonic() + _wait, 0.0
        while time.monotonic() < until and not shutdown_event.is_set():
            time.sleep(TICK)
        return populate(processes, config, worker_func, sockets, shutdown_event, ctx)

    module._join_exited, module._populate = guarded_join_exited, guarded_populate


def _is_replaced():
    """Whether the parent should start another worker for the one that has failed."""
    global _wait
    if not is_served(os.getpid()):
        return False
    _wait = back_off(page.counts_failure())
    return True
