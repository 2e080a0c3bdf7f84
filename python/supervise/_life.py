"""Closes executors when the interpreter exits, and detaches them after a fork."""
import atexit
import logging
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from ._client import Client

LOG = logging.getLogger("concurrent.futures")

_register: "Callable[[Callable[[], None]], object]" = getattr(threading, "_register_atexit", atexit.register)
#: Python 3.8 waits for threads that are not daemons before it runs exit handlers, which would tell them to end.
DAEMON = not hasattr(threading, "_register_atexit")

clients: "weakref.WeakSet[Client]" = weakref.WeakSet()
#: The interpreter is exiting: no process can be started.
exiting = False
#: The number of forks between the process that imported this module and this process.
forks = 0


def _exit() -> None:
    global exiting
    exiting = True
    ending = list(clients)
    # If an uncaught Ctrl-C ends the program, no more tasks are started. In an interactive session the last Ctrl-C may
    # be long past, because the session continues after it.
    last = getattr(sys, "last_type", None)
    interrupted = isinstance(last, type) and issubclass(last, KeyboardInterrupt) and not hasattr(sys, "ps1")
    for client in ending:
        client.close(interrupted, interrupted)
    for client in ending:
        client.join()


def _forked() -> None:
    global forks
    forks += 1
    for client in list(clients):
        client.forked()
    clients.clear()


_register(_exit)
os.register_at_fork(after_in_child=_forked)
