"""The template: imports all modules once, then forks a fork server for each slot.

It sends `ready` or `failed`. It receives `fork_server`. It answers with `fork_server`, with the socket of the new
process attached, or with `refused`. `protocol.py` has these messages.
"""

import array
import atexit
import gc
import json
import os
import signal
import socket
import sys

from . import codec, fork_check, fork_renew, fork_server, fork_threads, prints, protocol


def main():
    orders = json.loads(sys.argv[1])
    control = socket.socket(fileno=orders["control"])
    control.set_inheritable(False)
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 0)
    os.close(quiet)
    # The standard output of `supervise` is for results, so imports print to standard error. Each worker later has its
    # own pipe as descriptor 1. A module that keeps a reference to this `sys.stdout` then prints to that pipe, too.
    os.dup2(2, 1)
    prints.open_stdout()
    c_stdout = prints.CStdout()
    # The directory of this package was needed only for the imports above. The user's imports must not find modules
    # in it.
    sys.path.remove(sys.argv[2])
    path = os.environ.pop("SUPERVISE_SYS_PATH", None)
    if path:
        sys.path[:] = json.loads(path)
    del sys.argv[1:]

    try:
        protocol.check(orders.get("protocol"))
        task, generators, found = prepare(orders)
    except BaseException as error:
        fork_server.send(control, protocol.failed(codec.describe(error)))
        return 1
    fork_server.send(control, protocol.ready(*found))
    # Memory that is shared with the workers stays shared: after freeze(), a collection in a worker does not write to
    # these objects.
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        try:
            order = control.recv(protocol.MESSAGE_MAX)
        except InterruptedError:
            continue
        reap()
        if not order:
            run_exit_handlers()
            return 0
        slot = protocol.decode(order)[1]["slot"]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = fork_threads.fork()
        except OSError as error:
            fork_server.send(control, protocol.refused(slot, error.errno))
            continue
        if pid == 0:
            control.close()
            ours.close()
            return fork_server.main(theirs, orders, task, generators, c_stdout)
        theirs.close()
        fds = array.array("i", [ours.fileno()])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        fork_server.send(control, protocol.fork_server(slot, pid), ancillary)
        ours.close()


def prepare(orders):
    """Imports the first `warm` of the pool's modules, and finds what they hold that forks cannot share."""
    roots = codec.roots(orders)
    warm = roots[: orders["warm"]]
    with fork_check.ImportWatch() as watch, fork_renew.Seeds() as seeds:
        for number, name in enumerate(warm):
            watch.import_root(number, name)
        task = codec.load(orders) if len(warm) == len(roots) and orders["warm"] else None
    found, root = watch.findings()
    return task, fork_renew.Generators(seeds), (fork_check.messages(found), root)


def reap():
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def run_exit_handlers():
    """Runs the exit handlers that imports have registered: once, in the template, when all workers have exited."""
    try:
        atexit._run_exitfuncs()
    except BaseException:
        pass


def run():
    """Runs the template. Every process forked from it returns here, too, and exits."""
    status = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
