"""What every lossless drain has in common.

A stopping server loses requests in three places: a kept-alive connection is closed while its client
sends the next request, a fresh one is closed before its first request was read, and the kernel's queue
of a closed listener is reset. So a drain says `Connection: close` with every answer, gives the clients
`LINGER` seconds to send one more request and be told so, and empties the queue of a listener that is
its own. Then the server's own shutdown goes on.

A listener that another process has open as well is only closed: the other process serves its queue, now
or later. No filter is put on such a listener, because it would stay there after this process has ended.
"""

import array
import os
import socket
import time

from . import page

LINGER = float(os.environ["SUPERVISE_AGENT_DRAIN"])

# What a loop needs to take in the queue of its listener, and a client to finish a handshake that was
# under way (a long round trip).
SETTLE = 0.1

# How often a drain looks whether it is done.
TICK = 0.02

# Looking for other processes that have a listener open may take this long.
LOOK_MAX = 0.2

SO_ATTACH_FILTER = 26

# A classic BPF program (code, jump if true, jump if false, operand) that sees a TCP header:
# drop what has SYN and not ACK, take everything else.
_NO_SYN = (
    (0x30, 0, 0, 13),  # A = the byte of flags
    (0x54, 0, 0, 0x12),  # A &= SYN | ACK
    (0x15, 0, 1, 0x02),  # if A == SYN
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # take
)


def begin():
    """Says on the page that this process finishes what it has."""
    page.claim()
    page.slot[page.DRAIN] = 1


def told(connections=1):
    """Counts connections that were closed after an answer that said so."""
    page.slot[page.TOLD] += connections


def installed():
    page.flag(page.DRAINING)


# The listeners that this program has bound itself: inode -> pid of the process that bound it.
_bound = {}


def bound(fd):
    """Notes that this process has bound this listener itself, and has not inherited it."""
    _bound[os.fstat(fd).st_ino] = os.getpid()


def deafen(fd, workers=()):
    """Lets a TCP listener take no new connection, and finish those that have begun.

    Does so only if the listener ends with this process: this process has bound it, and no other process has it
    open except `workers`, which end before this one.

    Closing it resets what came between the last accept and the close; there is no moment at which the
    queue is known to be empty. With this filter there is. A client whose SYN is dropped tries again
    after a second, and meets a successor or a refusal.
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
    """Whether another process has this socket open: one that was forked, or one that was sent it."""
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
            # The process has ended, or is another user's and so not one that we have started.
            continue
        for number in numbers:
            try:
                if os.readlink(directory + number) == name:
                    return True
            except OSError:
                # It was closed meanwhile.
                pass
    return False


def _instruction(code, if_true, if_false, operand):
    return array.array("H", (code,)).tobytes() + bytes((if_true, if_false)) + array.array("I", (operand,)).tobytes()


def _set(fd, option, value):
    # A copy of the descriptor: uvloop's sockets have no setsockopt, and closing ours must not close it.
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
