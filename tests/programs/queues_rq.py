"""A worker of rq that holds each job for a moment before it starts it."""

import time

from rq import Worker


class SlowWorker(Worker):
    def reorder_queues(self, *args, **kwargs):
        # It has taken the job, and its state is still "idle".
        time.sleep(0.03)
        super().reorder_queues(*args, **kwargs)
