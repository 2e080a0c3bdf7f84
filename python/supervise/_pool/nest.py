"""A nest: lives in a slot's group, runs nothing of the user's, and forks the slot's workers.

Its messages, each a datagram: it receives `fork N`, and answers with `born N PID SECRET`, with the worker's socket,
page and output pipe attached (`prints.py` says what SECRET is for), or with `none N ERRNO`. When a worker has ended
it sends `ended N STATUS PEAK_KIB`.
"""

import _signal
import _socket
import array
import mmap
import os
import select
import signal
import socket

from . import fork_renew, prints, worker


def main(control, orders, task, generators, c_stdout):
    fork_renew.forget_exit_handlers()
    waker, wakes = os.pipe()
    os.set_blocking(waker, False)
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # Workers inherit this. Only the supervisor handles Ctrl-C; it tells the workers.
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
            bury(control, children)
        if control.fileno() not in ready:
            continue
        word = control.recv(64)
        if not word:
            return 0
        number = int(word.split()[1])
        # The C modules, because the enumerations of `socket` and `signal` make a fork copy 150 pages more, of 800.
        ours, theirs = _socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        page = os.memfd_create("supervise-page")
        os.ftruncate(page, mmap.PAGESIZE)
        output, pipe = os.pipe()
        secret = os.urandom(prints.SECRET_LENGTH)
        try:
            pid = os.fork()
        except OSError as error:
            say(control, b"none %d %d" % (number, error.errno))
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
        say(control, b"born %d %d %s" % (number, pid, secret.hex().encode()), ancillary)
        ours.close()
        for fd in (page, output):
            os.close(fd)


def say(control, word, ancillary=()):
    try:
        control.sendmsg([word], ancillary)
    except OSError:
        # The supervisor has closed the socket, and this process will end soon.
        pass


def bury(control, children):
    while children:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        number = children.pop(pid, None)
        if number is not None:
            say(control, b"ended %d %d %d" % (number, status, usage.ru_maxrss))


def drain(waker):
    try:
        while os.read(waker, 512):
            pass
    except BlockingIOError:
        pass

