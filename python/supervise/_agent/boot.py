"""What happens at interpreter start: two signal handlers and an import hook. Nothing else is loaded."""

import _thread
import faulthandler
import os
import sys

import _signal

from . import hooks

# Taken before gevent can replace it, for code that must have a thread of the system.
start_new_thread = _thread.start_new_thread

# Numbers are taken from the high end, so that a program which counts on the lowest free descriptor,
# or hands over descriptors from 3 on, meets none of ours.
HIGH = (900, 400, 200, 100, 60)


def install(directory):
    """Makes this interpreter ready to be asked and counted."""
    sys.meta_path.insert(0, Finder)
    try:
        _signal.signal(_signal.SIGRTMIN + 5, _asked)
    except ValueError:
        # A subinterpreter, or not its main thread: the process has been set up by the main one.
        return
    stacks = os.open(directory + "/stacks", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    # Of the thread that the signal meets, which is the main one: the frames of others go on changing while they are
    # read, and what is freed meanwhile is read nevertheless (a SIGSEGV within seconds in a threaded server).
    faulthandler.register(_signal.SIGRTMIN + 6, file=high(stacks), all_threads=False, chain=False)


def high(fd):
    """Moves a descriptor out of the way and returns its new number."""
    for number in HIGH:
        try:
            os.fstat(number)
        except OSError:
            try:
                os.dup2(fd, number, False)
            except OSError:
                # Above the limit on open files.
                continue
            os.close(fd)
            return number
    return fd


def swallow():
    """Counts an exception that stays in here."""
    try:
        from . import page

        page.swallowed()
    except Exception:
        pass


def _asked(signum, frame):
    # Only Exception: a server's own handler may raise SystemExit while this one runs (gunicorn does),
    # and that must reach the server.
    try:
        from . import ask

        ask.answer()
    except Exception:
        swallow()


class Finder:
    """Finds the modules of known servers as anyone would, and has them hooked once they have run."""

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
    """Stands before a module's loader until the module has run, then steps aside."""

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
