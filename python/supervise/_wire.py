"""The client's socket to its pool. No thread blocks in a write."""
import collections
import itertools
import select
import socket
from typing import Callable, Deque, List, Optional

from ._pool import protocol

_BUFFER = 256 << 10


class Wire:
    """A new pair of sockets to the pool, and a second pair that wakes the thread in `wait`."""

    def __init__(self) -> None:
        self._waker, self._wakes = socket.socketpair()
        #: `theirs` is the end of the pool.
        self._socket, self.theirs = socket.socketpair()
        for end in (self._waker, self._wakes, self._socket):
            end.setblocking(False)
        #: Data that the socket has not taken yet.
        self.out: Deque[memoryview] = collections.deque()
        self._buffer = bytearray(_BUFFER)
        self._filled = 0
        self._poll = select.poll()
        self._poll.register(self._wakes, select.POLLIN)
        self._poll.register(self._socket, select.POLLIN)
        self._number = self._socket.fileno()
        self._writing = False

    def wake(self) -> None:
        """Wakes the thread in `wait`. Takes no lock."""
        try:
            self._waker.send(b"!")
        except OSError:
            pass  # The buffer is full, so the thread will wake; or the socket is closed.

    def shut(self) -> None:
        """Shuts the connection down: the pool then stops at once."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # The pool has exited.

    def release(self) -> None:
        """Closes all sockets of this process."""
        for end in (self._socket, self.theirs, self._waker, self._wakes):
            end.close()

    def write(self, parts: List[bytes]) -> None:
        """Writes what the socket takes; `flush` writes the rest. The caller holds the lock of the client."""
        if self.out:
            self.out.extend(map(memoryview, parts))
            return
        try:
            sent = self._socket.send(parts[0]) if len(parts) == 1 else self._socket.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # The pool has exited. The next read notices that.
        for part in parts:
            if sent < len(part):
                self.out.append(memoryview(part)[sent:])
            sent = max(0, sent - len(part))
        if self.out:
            self.wake()

    def flush(self) -> None:
        """Writes more of `out`. The caller holds the lock of the client."""
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
            out.clear()  # The pool has exited. The next read notices that.

    def wait(self) -> bool:
        """Waits for the pool or for `wake`. True if there is data to read."""
        if bool(self.out) != self._writing:
            self._writing = not self._writing
            events = select.POLLIN | select.POLLOUT if self._writing else select.POLLIN
            self._poll.modify(self._number, events)
        readable = False
        for number, event in self._poll.poll():
            if number != self._number:
                self._wakes.recv(4096)
            elif event & ~select.POLLOUT:
                readable = True
        return readable

    def receive(
        self, answer: Callable[[int, memoryview], int], take: Callable[[int, int, memoryview], int]
    ) -> Optional[int]:
        """Reads what has arrived. Calls `answer` for each result, and `take` for each other frame.

        Returns the sum of what they returned, or None at the end of the connection.
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
        head, unpack = protocol.REPLY.size, protocol.REPLY.unpack_from
        result, broken = protocol.RESULT, protocol.BROKEN
        with memoryview(self._buffer) as view:
            while filled - at >= head:
                length, kind, number, _, _ = unpack(view, at)
                body = at + head
                if body + length > filled:
                    needed = head + length
                    break
                at = body + length
                if kind == result:
                    answered += answer(number, view[body:at])
                    continue
                answered += take(kind, number, view[body:at])
                if kind == broken:
                    return None
            self._keep(view, at, needed)
        return answered

    def _keep(self, view: memoryview, at: int, needed: int) -> None:
        """Moves the first part of an incomplete frame to the start of the buffer, with room for the rest."""
        rest = self._filled - at
        wanted = max(_BUFFER, needed)
        if wanted > len(view) or (wanted < len(view) and rest <= _BUFFER // 2):
            buffer = bytearray(wanted)
            buffer[:rest] = view[at : self._filled]
            self._buffer = buffer
        elif at and rest:
            view[:rest] = bytes(view[at : self._filled])
        self._filled = rest
