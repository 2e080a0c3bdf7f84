"""A fork server: runs in the cgroup of a slot, runs no code of the user, and forks the workers of the slot.

It receives FORK. It answers with FORKED, with the worker's socket, page and output pipe attached, or with REFUSED.
When a worker has exited it sends ENDED. `protocol.py` has these messages.
"""

import _signal
import _socket
import array
import mmap
import os
import select
import signal
import socket

from . import fork_renew, protocol, worker
from .protocol import ENDED, FORK, FORK_REPLY, FORKED, NO_SECRET, REFUSED


def main(control, orders, task, generators, c_stdout):
    fork_renew.forget_exit_handlers()
    waker, wakes = os.pipe()
    os.set_blocking(waker, False)
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # Workers inherit this. Only the supervisor handles Ctrl-C; it then stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    children = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(waker, select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if waker in ready:
            drain(waker)
            reap(control, children)
        if control.fileno() not in ready:
            continue
        order = control.recv(FORK.size)
        if not order:
            return 0
        (number,) = FORK.unpack(order)
        # This uses the C modules: the enumerations of `socket` and `signal` make a fork copy 150 more pages (of 800).
        ours, theirs = _socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        page = os.memfd_create("supervise-page")
        os.ftruncate(page, mmap.PAGESIZE)
        output, pipe = os.pipe()
        secret = os.urandom(protocol.SECRET_LENGTH)
        try:
            pid = os.fork()
        except OSError as error:
            send(control, FORK_REPLY.pack(REFUSED, number, error.errno, 0, NO_SECRET))
            ours.close()
            theirs.close()
            for fd in (page, output, pipe):
                os.close(fd)
            continue
        if pid == 0:
            signal.set_wakeup_fd(-1)
            _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
            for fd in (waker, wakes, output):
                os.close(fd)
            control.close()
            ours.close()
            return worker.main(theirs, page, (pipe, secret, c_stdout), orders, task, generators)
        theirs.close()
        os.close(pipe)
        children[pid] = number
        fds = array.array("i", [ours.fileno(), page, output])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        send(control, FORK_REPLY.pack(FORKED, number, pid, 0, secret), ancillary)
        ours.close()
        for fd in (page, output):
            os.close(fd)


def send(control, message, ancillary=()):
    try:
        control.sendmsg([message], ancillary)
    except OSError:
        # The supervisor has closed the socket, so this process will exit soon.
        pass


def reap(control, children):
    while children:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        number = children.pop(pid, None)
        if number is not None:
            send(control, FORK_REPLY.pack(ENDED, number, status, usage.ru_maxrss, NO_SECRET))


def drain(waker):
    try:
        while os.read(waker, 512):
            pass
    except BlockingIOError:
        pass

