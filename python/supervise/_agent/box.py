"""A time box, and a room that the agent's own memory must fit in."""
import time


class Box:
    def __init__(self, seconds, room, began):
        self.began = began
        self.seconds = seconds
        self.room = room
        self.missing = []

    def spent(self):
        return time.monotonic() - self.began

    def left(self):
        return self.seconds - self.spent()

    def allows(self, seconds, memory, what):
        """Whether a step of an estimated price fits; what does not is noted."""
        if self.left() < seconds:
            self.missing.append("%s: no time left" % what)
            return False
        if self.room < memory:
            self.missing.append("%s: no room" % what)
            return False
        return True
