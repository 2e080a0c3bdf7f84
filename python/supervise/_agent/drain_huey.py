"""A worker of huey's consumer (`-k process`) leaves at INT when it has finished its task. The consumer then starts
another one, as after its option `-M`.

By itself, a worker ignores INT. At TERM it ends its task, which is then lost.
"""

import signal

from . import drain, page, protocol


def consumer(module):
    environment = getattr(module, "ProcessEnvironment", None)
    recycle = getattr(module, "WorkerRecycle", None)
    if environment is None or recycle is None:
        # This huey has no workers that leave.
        return
    original = environment.init_child

    def init_child(self, process):
        original(self, process)
        try:
            _leave_at_int(process, recycle)
        except Exception:
            page.swallowed()

    environment.init_child = init_child


def _leave_at_int(process, recycle):
    leaves = []
    original = process.loop

    def loop(*args, **kwargs):
        # The exception is raised between two tasks. The caller handles it.
        if leaves:
            raise recycle
        return original(*args, **kwargs)

    def leave(number, frame):
        leaves.append(True)
        page.slot[protocol.DRAIN] = 1

    process.loop = loop
    drain.installed()
    page.ready()
    signal.signal(signal.SIGINT, leave)
