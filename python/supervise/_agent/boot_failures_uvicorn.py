"""Keeps the parent of `uvicorn --workers` running when a worker cannot boot while another worker serves.

When a worker exits with status 3 before it serves, the parent stops all workers (`keep_subprocess_alive`). That is right
at the first start. Later it turns the loss of one worker into the loss of the service. So while another worker serves,
the parent sees status 1, for which it starts another worker, but only after a back-off.
"""

import os
import time

from . import page
from .boot_failures import back_off, is_served

# For this status the parent starts another worker.
STATUS = 1


def parent(module):
    """Makes a worker that could not boot look alive during the back-off, and then like one that has failed later."""
    halting = getattr(module, "STARTUP_FAILURE", None)
    exitcode = getattr(module.Process, "exitcode", None)
    if halting is None or not isinstance(exitcode, property):
        # This uvicorn starts another worker for each status.
        return
    is_alive = module.Process.is_alive

    def guarded_is_alive(self, *args, **kwargs):
        alive = is_alive(self, *args, **kwargs)
        try:
            return alive or _waits(self, exitcode.fget(self) == halting)
        except Exception:
            page.swallowed()
            return alive

    def guarded_exitcode(self):
        status = exitcode.fget(self)
        return STATUS if status == halting and _until(self) is not None else status

    module.Process.is_alive = guarded_is_alive
    module.Process.exitcode = property(guarded_exitcode)


def _until(process):
    return getattr(process, "_supervise_until", None)


def _waits(process, failed):
    """Whether the parent should wait before it starts another worker for this one."""
    if not failed:
        return False
    until = _until(process)
    if until is None:
        if not is_served(os.getpid()):
            return False
        until = process._supervise_until = time.monotonic() + back_off(page.counts_failure())
    return time.monotonic() < until
