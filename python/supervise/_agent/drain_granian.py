"""The drain of granian's workers, and the listener that they share.

By itself, each worker has a listener of its own (`SO_REUSEPORT`), and the kernel resets the connections that wait in
its queue when it exits. With a listener that granian's main process holds, they wait for another worker. That is how
granian listens on a Unix socket, and on TCP on other systems. A socket that the supervisor holds is used, too.

At TERM, a worker stops accepting, closes its connections by its answers (not with RSGI, whose headers it does not
see), and after the linger granian's own shutdown finishes what is in progress.
"""

import multiprocessing
import os
import select
import signal
import time

from . import boot, drain, page

# The first descriptor that is passed on (sd_listen_fds(3)).
FIRST = 3

_draining = False

# Inode of the shared listener.
_listener = None


def server(module):
    """Hooks the function with which granian's main process prepares its listener."""
    from granian._granian import SocketHolder

    original = module.AbstractServer._init_shared_socket

    def _init_shared_socket(self):
        global _listener
        # Workers inherit the listener only by a fork.
        if self.bind_uds or multiprocessing.get_start_method() != "fork":
            return original(self)
        if os.environ.get("LISTEN_PID") == str(os.getpid()):
            self._shd = SocketHolder(FIRST, False, self.backlog)
            self._sfd = FIRST
        else:
            self._shd = module.SocketSpec(self.bind_addr, self.bind_port, self.backlog).build()
            self._sfd = self._shd.get_fd()
        _listener = os.fstat(self._sfd).st_ino
        return None

    module.AbstractServer._init_shared_socket = _init_shared_socket


def signals(module):
    """Hooks the functions with which a worker handles signals."""
    loop_signals, sync_signals = module.set_loop_signals, module.set_sync_signals

    def set_loop_signals(loop):
        event = loop_signals(loop)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, _stop, event)
        return event

    def set_sync_signals():
        event = sync_signals()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: _stop(event))
        return event

    module.set_loop_signals, module.set_sync_signals = set_loop_signals, set_sync_signals
    drain.installed()


def asgi(module):
    _wrap_application(module, _asgi)


def wsgi(module):
    _wrap_application(module, _wsgi)


def _wrap_application(module, wrap):
    original = module._callback_wrapper

    def _callback_wrapper(callback, *args, **kwargs):
        return original(wrap(callback), *args, **kwargs)

    module._callback_wrapper = _callback_wrapper


def _asgi(application):
    def closing(scope, receive, send):
        if scope["type"] != "http" or not scope["http_version"].startswith("1"):
            return application(scope, receive, send)

        def closing_send(message):
            if _draining and message["type"] == "http.response.start":
                message = dict(message, headers=[*message.get("headers", ()), (b"connection", b"close")])
                drain.count_closed()
            return send(message)

        return application(scope, receive, closing_send)

    return closing


def _wsgi(application):
    def closing(environ, start_response):
        def closing_start(status, headers, *args):
            if _draining and environ["SERVER_PROTOCOL"].startswith("HTTP/1"):
                headers = [*headers, ("connection", "close")]
                drain.count_closed()
            return start_response(status, headers, *args)

        return application(environ, closing_start)

    return closing


def _stop(event):
    """Begins the drain. At the second signal, granian's shutdown begins at once."""
    global _draining
    if _draining:
        event.set()
        return
    _draining = True
    try:
        drain.begin()
        boot.start_new_thread(_linger, (event,))
    except Exception:
        page.swallowed()
        event.set()


def _linger(event):
    until = time.monotonic() + drain.LINGER
    polls = []
    try:
        polls = _stop_accepting()
    except Exception:
        page.swallowed()
    while time.monotonic() < until and (not polls or any(map(_has_connections, polls))):
        time.sleep(drain.TICK)
    event.set()


def _stop_accepting():
    """Removes the shared listener from the event loops of this process. Returns their descriptors."""
    name = "socket:[%s]" % _listener
    polls = []
    for poll in _polls():
        for fd in _watched(poll):
            if _name(fd) == name:
                select.epoll.fromfd(os.dup(poll)).unregister(fd)
                polls.append(poll)
    # An accept that has begun meanwhile becomes a connection that is watched.
    time.sleep(drain.SETTLE)
    return polls


def _polls():
    return [int(fd) for fd in os.listdir("/proc/self/fd") if _name(fd) == "anon_inode:[eventpoll]"]


def _has_connections(poll):
    return any(_name(fd).startswith("socket:") for fd in _watched(poll))


def _watched(poll):
    """The descriptors that an epoll instance watches (proc_pid_fdinfo(5): `tfd`)."""
    try:
        with open("/proc/self/fdinfo/%d" % poll) as file:
            return [int(line.split()[1]) for line in file if line.startswith("tfd:")]
    except OSError:
        # It was closed meanwhile.
        return []


def _name(fd):
    try:
        return os.readlink("/proc/self/fd/%s" % fd)
    except OSError:
        return ""
