"""What happens to executors when the interpreter ends, or forks."""
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
#: Before Python 3.9 other threads are waited for before anything can tell them to end.
DAEMON = not hasattr(threading, "_register_atexit")

clients: "weakref.WeakSet[Client]" = weakref.WeakSet()
#: No process can be started any more.
exiting = False
#: How often this process is the child of a fork, counted from the one that imported this.
forks = 0


def _exit() -> None:
    global exiting
    exiting = True
    ending = list(clients)
    # If an uncaught Ctrl-C ends the program, no other task is begun. An interactive session goes on after a Ctrl-C,
    # so there it does not count.
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
