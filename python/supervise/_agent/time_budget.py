"""A limit on the time of a report, and on the memory that the agent itself uses (`room`)."""
import time

# A thread of low priority may take this many times longer than the CPU time that it uses.
SLOWER = 3


def patient_clock():
    """A clock for a thread of low priority: it shows the CPU time of this thread, unless very much more time passes."""
    wall, cpu = time.monotonic(), time.thread_time()

    def clock():
        return wall + max(time.thread_time() - cpu, (time.monotonic() - wall) / SLOWER)

    return clock


class Withdrawn(Exception):
    """The supervisor no longer wants the report."""


class TimeBudget:
    def __init__(self, seconds, room, began, clock=time.monotonic, withdrawn=None):
        """`began` is a time of `clock`. `withdrawn()`: whether the supervisor no longer wants the report."""
        self.clock = clock
        self.withdrawn = withdrawn
        self.began = began
        self.seconds = seconds
        self.room = room
        self.missing = []

    def spent(self):
        return self.clock() - self.began

    def is_withdrawn(self):
        return self.withdrawn is not None and self.withdrawn()

    def left(self):
        # Nothing more is done for a report that is not wanted any more.
        return 0.0 if self.is_withdrawn() else self.seconds - self.spent()

    def part(self, share):
        """A budget for a part of the time that is left."""
        return TimeBudget(self.left() * share, self.room, self.clock(), self.clock, self.withdrawn)

    def allows(self, seconds, memory, what):
        """Whether a step with an estimated cost fits. If not, the step is recorded as missing."""
        if self.left() < seconds:
            self.missing.append("%s: no time left" % what)
            return False
        if self.room < memory:
            self.missing.append("%s: not enough memory left" % what)
            return False
        return True
