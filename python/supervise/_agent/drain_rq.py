"""A worker of rq leaves at TERM only when it has no job in hand.

By itself, an idle worker raises an exception in its signal handler. If it has just taken a job from its queue, that job
is left in the intermediate queue, and fails minutes later. With the drain, a worker that waits for a job leaves after
at most `WAIT` seconds.
"""

from . import drain, page, protocol

# The longest wait for a job, in seconds.
WAIT = 2


def worker(module):
    base = getattr(module, "BaseWorker", None)
    is_due = getattr(base, "should_run_maintenance_tasks", None)
    if base is None or base.__module__ != module.__name__ or not isinstance(is_due, property):
        return
    shutdown, dequeue = base._shutdown, base.dequeue_job_and_maintain_ttl
    busy = module.WorkerStatus.BUSY

    def patient_shutdown(self):
        if self.get_state() == busy:
            return shutdown(self)
        self._supervise_leaves = True

    def checked(self):
        # This is read before each job is taken, when the worker has no job in hand.
        if getattr(self, "_supervise_leaves", False):
            raise module.StopRequested
        return is_due.fget(self)

    def brief_dequeue(self, timeout, *args, **kwargs):
        try:
            if page.slot[protocol.READY_NS] == 0:
                drain.installed()
                page.ready()
        except Exception:
            page.swallowed()
        return dequeue(self, timeout and min(timeout, WAIT), *args, **kwargs)

    base._shutdown, base.dequeue_job_and_maintain_ttl = patient_shutdown, brief_dequeue
    base.should_run_maintenance_tasks = property(checked)
