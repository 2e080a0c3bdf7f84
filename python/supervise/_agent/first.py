"""Keeps the agent's directory first on PYTHONPATH where other tools put theirs before it.

Launchers such as `opentelemetry-instrument` put a directory with a `sitecustomize` of their own in front and execute the
program. Only the first `sitecustomize` on the path is loaded. Ours loads the next one in its turn and theirs may not,
so ours goes back to the front: before this process executes a program, and in what its child processes inherit.
"""

import os


def reorder(environ, directory):
    """Moves the directory to the front of PYTHONPATH, if it is in it and meant for this process."""
    path = environ.get("PYTHONPATH", "").split(os.pathsep)
    if environ.get("SUPERVISE_AGENT") == directory and directory in path[1:]:
        others = [entry for entry in path if entry != directory]
        environ["PYTHONPATH"] = os.pathsep.join([directory] + others)


def install(directory):
    """From now on programs that this process executes find the directory first."""
    execv, execve = os.execv, os.execve

    def execv_first(path, argv, /):
        _quietly(os.environ, directory)
        return execv(path, argv)

    def execve_first(path, argv, env):
        if isinstance(env, dict):
            env = dict(env)
        _quietly(env, directory)
        return execve(path, argv, env)

    # What supports a descriptor in place of a path is known by identity.
    if execve in os.supports_fd:
        os.supports_fd.add(execve_first)
    os.execv, os.execve = execv_first, execve_first


def _quietly(environ, directory):
    # An environment of bytes, or one that is no mapping, is the caller's own affair.
    try:
        reorder(environ, directory)
    except Exception:
        pass
