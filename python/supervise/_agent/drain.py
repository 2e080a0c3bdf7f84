"""Functions that all lossless drains use.

A stopping server loses requests in three ways: it closes a kept-alive connection while the client sends the next
request; it closes a new connection before it has read the first request; and the kernel resets the connections in the
queue of a closed listener. So a drain adds `Connection: close` to every answer. It gives the clients `LINGER` seconds
to send one more request and to receive that header. And it empties the queue of a listener that only this process
has. Then the shutdown of the server continues.

A listener that another process also has open is only closed: the other process serves its queue, now or later. Such a
listener gets no filter, because the filter would stay after this process has exited.
"""

import array
import os
import socket
import time

from . import page, protocol

LINGER = float(os.environ["SUPERVISE_AGENT_DRAIN"])

# Seconds in which an event loop can accept the queue of its listener, and a client can finish a handshake that has
# begun (a long round trip).
SETTLE = 0.1

# Interval at which a drain checks whether it is done.
TICK = 0.02

# Maximum time of the search for other processes that have a listener open.
LOOK_MAX = 0.2

SO_ATTACH_FILTER = 26

# A classic BPF program (code, jump if true, jump if false, operand) that reads a TCP header: it drops packets with SYN
# and without ACK, and accepts all others.
_NO_SYN = (
    (0x30, 0, 0, 13),  # A = the byte of flags
    (0x54, 0, 0, 0x12),  # A &= SYN | ACK
    (0x15, 0, 1, 0x02),  # if A == SYN
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # take
)


def begin():
    """Reports on the page that this process finishes its requests and then stops."""
    page.claim()
    page.slot[protocol.DRAIN] = 1


def count_closed(connections=1):
    """Counts connections that were closed after an answer with `Connection: close`."""
    page.slot[protocol.TOLD] += connections


def installed():
    page.flag(protocol.DRAINING)


# The listeners that this program has bound: inode -> pid of the process that bound it.
_bound = {}


def bound(fd):
    """Records that this process has bound this listener and has not inherited it."""
    _bound[os.fstat(fd).st_ino] = os.getpid()


def drop_new_connections(fd, workers=()):
    """Makes a TCP listener drop new connections, while handshakes that have begun can still finish.

    Does so only if the listener ends with this process: this process has bound it, and no other process has it
    open except `workers`, which exit before this one.

    To close the listener would reset the connections that arrive between the last accept and the close: without the
    filter, the queue is never known to be empty. With the filter it is. A client whose SYN is dropped tries again
    after a second. By then another process listens there, or the connection is refused.
    """
    inode = os.fstat(fd).st_ino
    if _bound.get(inode) != os.getpid() or _is_open_elsewhere(inode, workers):
        return
    code = array.array("B")
    for instruction in _NO_SYN:
        code.frombytes(_instruction(*instruction))
    address, _ = code.buffer_info()
    program = array.array("Q", (len(_NO_SYN), address)).tobytes()
    _set(fd, SO_ATTACH_FILTER, program)


def _is_open_elsewhere(inode, workers):
    """Whether another process has this socket open: it was forked, or it has received the socket."""
    name = "socket:[%d]" % inode
    until = time.monotonic() + LOOK_MAX
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) == os.getpid() or int(pid) in workers:
            continue
        if time.monotonic() > until:
            return True
        directory = "/proc/%s/fd/" % pid
        try:
            numbers = os.listdir(directory)
        except OSError:
            # The process has exited, or belongs to another user, so this program has not started it.
            continue
        for number in numbers:
            try:
                if os.readlink(directory + number) == name:
                    return True
            except OSError:
                # The descriptor was closed meanwhile.
                pass
    return False


def _instruction(code, if_true, if_false, operand):
    return array.array("H", (code,)).tobytes() + bytes((if_true, if_false)) + array.array("I", (operand,)).tobytes()


def _set(fd, option, value):
    # This uses a copy of the descriptor: uvloop's sockets have no setsockopt, and the socket object made here must not
    # close the original.
    try:
        copy = socket.socket(fileno=os.dup(fd))
    except OSError:
        return
    with copy:
        try:
            if copy.family in (socket.AF_INET, socket.AF_INET6):
                copy.setsockopt(socket.SOL_SOCKET, option, value)
        except OSError:
            pass
