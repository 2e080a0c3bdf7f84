"""The times of event streams and WebSockets while their server drains, and where an event stream can end."""

import os

# The time for streams, and the time after which the supervisor kills this process.
GRACE, _limit = map(float, os.environ.get("SUPERVISE_AGENT_STREAMS", "0 0").split())
_rest = max(_limit - GRACE, 0)

# The time in which all clients are told, in this number of batches.
SPREAD = min(2.0, _rest / 5)
BATCHES = 20

# The time after that for applications to finish an event and to return.
PATIENCE = min(5.0, _rest / 4)

# The longest time from the end of `GRACE` until all have returned or were cancelled.
AFTER = SPREAD + PATIENCE * 1.5

_BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\r\r")


def end_of_last_event(tail, body):
    """The length of the part of `body` up to the last blank line, which ends an event. `tail` was sent before."""
    text = tail + body
    ends = [text.rfind(blank) + len(blank) for blank in _BLANK_LINES if blank in text]
    end = max(ends, default=0) - len(tail)
    return end if end > 0 else None


def is_between_events(tail):
    """Whether no event has begun after `tail`, the last bytes that were sent."""
    return not tail or tail.endswith(_BLANK_LINES)
