"""Installs two signal handlers and an import hook when the interpreter starts. Nothing else is loaded then."""

import _thread
import faulthandler
import os
import sys
from time import sleep

import _signal

from . import hooks

# Saved before gevent can replace it, for code that needs a thread of the operating system.
start_new_thread = _thread.start_new_thread

# Before 3.12, an import in a signal handler breaks an import that the signal has interrupted in one of these functions,
# which handle the locks of modules: KeyError, or a deadlock (github.com/python/cpython/issues/106176).
_IMPORTS = "<frozen importlib._bootstrap>"
_LOCKING = frozenset(("acquire", "release", "has_deadlock", "_get_module_lock", "cb", "__enter__", "__exit__"))
_HAS_SAFE_LOCKS = sys.version_info >= (3, 12)

# Seconds after which a request that has interrupted such a function is looked at again.
_SOON = 0.01

_directory = None

# The agent uses high descriptor numbers. Some programs rely on the lowest free descriptor, or pass on descriptors
# from 3 on.
HIGH = (900, 400, 200, 100, 60)


def install(directory):
    """Prepares this interpreter for requests of the supervisor and for the counting of requests."""
    global _directory
    _directory = directory
    sys.meta_path.insert(0, Finder)
    hooks.apply_to_program()
    try:
        _signal.signal(_signal.SIGRTMIN + 5, _asked)
    except ValueError:
        # This is a subinterpreter or not the main thread. The main interpreter has done the rest for this process.
        return
    stacks = os.open(directory + "/stacks", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    # Only the stack of the thread that receives the signal is written, which is the main thread. Other threads change
    # their frames while faulthandler reads them, so it would read freed memory (in a threaded server, that was a
    # SIGSEGV within seconds).
    faulthandler.register(_signal.SIGRTMIN + 6, file=high(stacks), all_threads=False, chain=False)


def high(fd):
    """Moves a descriptor to a high number and returns the number."""
    for number in HIGH:
        try:
            os.fstat(number)
        except OSError:
            try:
                os.dup2(fd, number, False)
            except OSError:
                # The number is above the limit on open files.
                continue
            os.close(fd)
            return number
    return fd


def swallow():
    """Counts an exception that does not leave the agent."""
    try:
        from . import page

        page.swallowed()
    except Exception:
        pass


def _asked(signum, frame):
    # Only Exception is caught: a signal handler of the server may raise SystemExit while this one runs (gunicorn's
    # does), and that must reach the server.
    try:
        if not _HAS_SAFE_LOCKS and _is_locking(frame):
            start_new_thread(_ask_soon, ())
            return
        from . import ask

        ask.answer()
    except Exception:
        swallow()


def _is_locking(frame):
    while frame is not None:
        code = frame.f_code
        if code.co_filename == _IMPORTS and code.co_name in _LOCKING:
            return True
        frame = frame.f_back
    return False


def _ask_soon():
    """Sends the signal again, if the request is still there."""
    sleep(_SOON)
    try:
        if os.access("%s/ask/%d" % (_directory, os.getpid()), os.R_OK):
            os.kill(os.getpid(), _signal.SIGRTMIN + 5)
    except Exception:
        swallow()


class Finder:
    """Finds the modules of supported servers through the other finders, and hooks each one after it is executed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in hooks.HOOKS:
            return None
        for finder in list(sys.meta_path):
            if finder is Finder or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = Loader(spec.loader)
                return spec
        return None


class Loader:
    """Wraps the loader of a module until the module is executed, then puts the original loader back."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def create_module(self, spec):
        return self.inner.create_module(spec)

    def exec_module(self, module):
        module.__loader__ = module.__spec__.loader = self.inner
        self.inner.exec_module(module)
        try:
            hooks.apply(module)
        except Exception:
            swallow()
