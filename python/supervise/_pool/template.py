"""The template: imports everything once, then forks a nest for each slot.

Its messages, each a datagram: it sends `ready JSON` or `failed JSON`. It receives `nest SLOT`, and answers with
`nest SLOT PID`, with the nest's socket attached, or with `none SLOT ERRNO`.
"""

import array
import atexit
import gc
import json
import os
import signal
import socket
import sys

from . import codec, fork_check, fork_renew, fork_threads, nest, prints


def main():
    orders = json.loads(sys.argv[1])
    control = socket.socket(fileno=orders["control"])
    control.set_inheritable(False)
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 0)
    os.close(quiet)
    # Our standard output is for results, so imports print to standard error. Each worker puts its own pipe on
    # descriptor 1: a module that keeps this `sys.stdout` at import prints there, too.
    os.dup2(2, 1)
    prints.open_stdout()
    c_stdout = prints.CStdout()
    # Ours is there for our own imports only: what is below must not be found by chance.
    sys.path.remove(sys.argv[2])
    path = os.environ.pop("SUPERVISE_SYS_PATH", None)
    if path:
        sys.path[:] = json.loads(path)
    del sys.argv[1:]

    try:
        task, generators, words = prepare(orders)
    except BaseException as error:
        nest.say(control, b"failed " + codec.describe(error))
        return 1
    nest.say(control, b"ready " + json.dumps(words).encode())
    # What is shared with the workers stays shared: a collection would write into every object.
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        try:
            word = control.recv(64)
        except InterruptedError:
            continue
        bury()
        if not word:
            run_exit_handlers()
            return 0
        slot = int(word.split()[1])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = fork_threads.fork()
        except OSError as error:
            nest.say(control, b"none %d %d" % (slot, error.errno))
            continue
        if pid == 0:
            control.close()
            ours.close()
            return nest.main(theirs, orders, task, generators, c_stdout)
        theirs.close()
        fds = array.array("i", [ours.fileno()])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        nest.say(control, b"nest %d %d" % (slot, pid), ancillary)
        ours.close()


def prepare(orders):
    """Imports the first `warm` of the pool's modules, and finds what forks cannot share of them."""
    roots = codec.roots(orders)
    warm = roots[: orders["warm"]]
    with fork_check.ImportWatch() as watch, fork_renew.Seeds() as seeds:
        for number, name in enumerate(warm):
            watch.import_root(number, name)
        task = codec.load(orders) if len(warm) == len(roots) and orders["warm"] else None
    found, root = watch.findings()
    words = {"unshareable": fork_check.messages(found), "from": root}
    return task, fork_renew.Generators(seeds), words


def bury():
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def run_exit_handlers():
    """Runs the exit handlers that imports have registered: once, in the template, when all workers have ended."""
    try:
        atexit._run_exitfuncs()
    except BaseException:
        pass


def run():
    """The life of the template, and of all that are forked from it: each comes back here."""
    status = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
