"""Finds what the imported modules hold in the template that forked workers cannot share.

All forks share the descriptors. On a shared connection an answer may reach the wrong task. If one process reads a
shared file, the position moves for all processes. A fork has only the thread that called fork(2). Only the parent of
a child process can wait for it.
"""

import importlib
import os
import socket
import stat
import sys
import threading

from . import fork_threads

# Limits that keep the message short: findings of one module, modules, and characters of one module's line.
FINDINGS_MAX = 3
MODULES_MAX = 5
LINE_MAX = 300

# These devices have no position, and one process cannot read data that is meant for another.
_HARMLESS_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/pts/")
_O_PATH = getattr(os, "O_PATH", 0o10000000)


class ImportWatch:
    """Notes which module has opened a descriptor or started a thread or process while it was imported.

    Within its context it replaces `_load_unlocked` of importlib, which every import calls, and so knows which module
    is being executed. If importlib has no such function, it only knows which of the pool's modules is being imported.
    """

    def __init__(self):
        self.root = 0
        self.modules = []
        self.importer = threading.get_ident()
        self.held = self.before = holdings()
        self.listed = list_names()
        self.openers = {}

    def __enter__(self):
        self.bootstrap = sys.modules.get("_frozen_importlib")
        self.load = getattr(self.bootstrap, "_load_unlocked", None)
        if self.load is not None:
            self.bootstrap._load_unlocked = noting(self, self.load)
        return self

    def __exit__(self, *_):
        if self.load is not None:
            self.bootstrap._load_unlocked = self.load

    def import_root(self, number, name):
        """Imports one of the pool's modules; `number` is its place among them."""
        self.root = number
        self.enter(name)
        try:
            importlib.import_module(name)
        finally:
            self.note()
            self.leave()

    def enter(self, name):
        """A module is about to be executed. What is new until now belongs to the module that imports it."""
        if threading.get_ident() == self.importer:
            self.note_changes()
            self.modules.append(name)

    def leave(self):
        if threading.get_ident() == self.importer:
            self.note_changes()
            self.modules.pop()

    def note_changes(self):
        # There may be thousands of modules, and `list_names` takes a tenth of the time of `holdings`.
        now = list_names()
        if now != self.listed:
            self.listed = now
            self.note()

    def note(self):
        held = holdings()
        opener = (self.root, self.modules[-1] if self.modules else "?")
        for holding in held - self.held:
            self.openers[holding] = opener
        self.held = held

    def findings(self):
        """What forks cannot share, as `{module: [what]}`, and the number of the first root that imported such a one."""
        self.note()
        found, roots = {}, []

        def add(holding, what):
            root, module = self.openers[holding]
            roots.append(root)
            found.setdefault(module, []).append(what)

        new = self.held - self.before
        for holding in sorted(new):
            what = harm(holding)
            if what is not None:
                add(holding, what)
        for tid, what in fork_threads.unforkable(sorted(it[1] for it in new if it[0] == "thread")):
            add(("thread", tid), what)
        return found, min(roots, default=None)


# Python removes frames of importlib from the traceback of a failed import. This function has the file name of
# importlib, so that Python removes its frame, too.
_NOTING = compile(
    """
def noting(watch, load):
    def _load_unlocked(spec):
        watch.enter(spec.name)
        try:
            return load(spec)
        finally:
            watch.leave()
    return _load_unlocked
""",
    "<frozen importlib._bootstrap>",
    "exec",
)


def noting(watch, load):
    names = {"__name__": "importlib._bootstrap"}
    exec(_NOTING, names)
    return names["noting"](watch, load)


def list_names():
    return names_in("/proc/self/fd"), names_in("/proc/self/task")


def holdings():
    """All descriptors, threads and children, as `("fd", number, target)`, `("thread", tid)`, `("child", pid)`."""
    held = set()
    for name in names_in("/proc/self/fd"):
        try:
            held.add(("fd", int(name), os.readlink("/proc/self/fd/" + name)))
        except OSError:
            pass  # This was the descriptor with which `names_in` read the directory.
    own = os.getpid()
    for name in names_in("/proc/self/task"):
        if int(name) != own:
            held.add(("thread", int(name)))
        try:
            # Each thread has its own children.
            with open("/proc/self/task/%s/children" % name) as file:
                held.update(("child", int(pid)) for pid in file.read().split())
        except OSError:
            pass  # The thread has ended, or the kernel does not list them (CONFIG_PROC_CHILDREN).
    return held


def names_in(folder):
    try:
        return os.listdir(folder)
    except OSError:
        return []


def harm(holding):
    """Describes why forks cannot share a holding; `None` if they can share it."""
    if holding[0] == "child":
        return "starts a child process"
    if holding[0] == "thread":
        return None
    _, fd, target = holding
    if fd <= 2:
        return None  # Standard input, output and error may be shared.
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return None
    if stat.S_ISSOCK(mode):
        return socket_harm(fd)
    if stat.S_ISFIFO(mode):
        return "opens a pipe"
    if target.startswith("anon_inode:"):
        return "opens an %s descriptor" % target[len("anon_inode:") :].strip("[]")
    if stat.S_ISCHR(mode):
        return None if target.startswith(_HARMLESS_DEVICES) else "opens the device %s" % target
    if stat.S_ISREG(mode) and not is_shareable_file(fd):
        return "opens the file %s" % target
    return None


def socket_harm(fd):
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return None  # A listening socket: only one process accepts each connection.
            peer = sock.getpeername()
    except OSError:
        return "opens a socket"
    if isinstance(peer, tuple) and len(peer) >= 2:
        return "opens a connection to %s:%s" % peer[:2]
    return "opens a connection to %s" % os.fsdecode(peer) if peer else "opens a pair of sockets"


def is_shareable_file(fd):
    """Whether the position of a file does not matter: it is appended to, mapped, or open only for a lock (flock(2))."""
    try:
        with open("/proc/self/fdinfo/%d" % fd) as file:
            info = file.read()
        flags = int(info.partition("flags:")[2].split()[0], 8)
        status = os.fstat(fd)
    except (OSError, ValueError, IndexError):
        return False
    if flags & (os.O_APPEND | _O_PATH) or "FLOCK" in info:
        return True
    device = "%02x:%02x" % (os.major(status.st_dev), os.minor(status.st_dev))
    return any(line[3:5] == [device, str(status.st_ino)] for line in fork_threads.mappings())


def messages(found):
    """One line of the message for each module."""
    lines = []
    for module, whats in list(found.items())[:MODULES_MAX]:
        whats = list(dict.fromkeys(whats))
        more = len(whats) - FINDINGS_MAX
        listed = ", ".join(whats[:FINDINGS_MAX]) + (", and %d more" % more if more > 0 else "")
        lines.append(("`%s` %s" % (module, listed))[:LINE_MAX])
    if len(found) > MODULES_MAX:
        lines.append("and %d more modules" % (len(found) - MODULES_MAX))
    return lines
