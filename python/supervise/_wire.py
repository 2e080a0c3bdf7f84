"""The socket to the pool, as the client sees it: frames in, bytes out, and nobody blocks in a write."""
import collections
import itertools
import select
import socket
import struct
from typing import Callable, Deque, List, Optional

_FRAME = struct.Struct("<IBQII")
#: The frames that this looks at itself: no more comes after the second.
RESULT, BROKEN = ord("K"), ord("X")
_BUFFER = 256 << 10


class Wire:
    """Both ends of a new socket, and a bell to wake the thread that waits at it."""

    def __init__(self) -> None:
        self._bell, self._rings = socket.socketpair()
        #: `theirs` is for the pool.
        self._socket, self.theirs = socket.socketpair()
        for end in (self._bell, self._rings, self._socket):
            end.setblocking(False)
        #: What the socket did not take yet.
        self.out: Deque[memoryview] = collections.deque()
        self._buffer = bytearray(_BUFFER)
        self._filled = 0
        self._poll = select.poll()
        self._poll.register(self._rings, select.POLLIN)
        self._poll.register(self._socket, select.POLLIN)
        self._number = self._socket.fileno()
        self._writing = False

    def ring(self) -> None:
        """Wakes the thread. Takes no lock."""
        try:
            self._bell.send(b"!")
        except OSError:
            pass  # It rings already, or the thread is gone.

    def shut(self) -> None:
        """Says that nothing is wanted any more."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # The pool is gone.

    def release(self) -> None:
        """Closes what this process has of it."""
        for end in (self._socket, self.theirs, self._bell, self._rings):
            end.close()

    def write(self, parts: List[bytes]) -> None:
        """Writes what the socket takes; `flush` writes the rest. Under the lock of the client."""
        if self.out:
            self.out.extend(map(memoryview, parts))
            return
        try:
            sent = self._socket.send(parts[0]) if len(parts) == 1 else self._socket.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # The pool is gone, which the next read says.
        for part in parts:
            if sent < len(part):
                self.out.append(memoryview(part)[sent:])
            sent = max(0, sent - len(part))
        if self.out:
            self.ring()

    def flush(self) -> None:
        """Writes more of what waits. Under the lock of the client."""
        out = self.out
        try:
            while out:
                sent = self._socket.sendmsg(list(itertools.islice(out, 64)))
                while sent:
                    part = out.popleft()
                    if sent < len(part):
                        out.appendleft(part[sent:])
                    sent = max(0, sent - len(part))
        except BlockingIOError:
            pass
        except OSError:
            out.clear()  # The pool is gone, which the next read says.

    def wait(self) -> bool:
        """Waits for the pool or the bell. True if there is something to read."""
        if bool(self.out) != self._writing:
            self._writing = not self._writing
            events = select.POLLIN | select.POLLOUT if self._writing else select.POLLIN
            self._poll.modify(self._number, events)
        readable = False
        for number, event in self._poll.poll():
            if number != self._number:
                self._rings.recv(4096)
            elif event & ~select.POLLOUT:
                readable = True
        return readable

    def receive(
        self, answer: Callable[[int, memoryview], int], take: Callable[[int, int, memoryview], int]
    ) -> Optional[int]:
        """Reads what there is; `answer` takes each result, `take` the other frames: the sum of what they say.

        None at the end.
        """
        try:
            count = self._socket.recv_into(memoryview(self._buffer)[self._filled :])
        except BlockingIOError:
            return 0
        except ConnectionError:
            return None
        if count == 0:
            return None
        filled = self._filled = self._filled + count
        at, needed, answered = 0, 0, 0
        head, unpack = _FRAME.size, _FRAME.unpack_from
        with memoryview(self._buffer) as view:
            while filled - at >= head:
                length, kind, number, _, _ = unpack(view, at)
                body = at + head
                if body + length > filled:
                    needed = head + length
                    break
                at = body + length
                if kind == RESULT:
                    answered += answer(number, view[body:at])
                    continue
                answered += take(kind, number, view[body:at])
                if kind == BROKEN:
                    return None
            self._keep(view, at, needed)
        return answered

    def _keep(self, view: memoryview, at: int, needed: int) -> None:
        """Keeps the part of a frame that came, with room for the rest of it."""
        rest = self._filled - at
        wanted = max(_BUFFER, needed)
        if wanted > len(view) or (wanted < len(view) and rest <= _BUFFER // 2):
            buffer = bytearray(wanted)
            buffer[:rest] = view[at : self._filled]
            self._buffer = buffer
        elif at and rest:
            view[:rest] = bytes(view[at : self._filled])
        self._filled = rest
