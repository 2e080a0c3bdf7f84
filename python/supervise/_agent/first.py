"""Keeps the agent's directory first on PYTHONPATH where other tools put theirs before it.

Launchers such as `opentelemetry-instrument` put a directory with a `sitecustomize` of their own in front and execute the
program. Python loads only the first `sitecustomize` on the path. Ours loads the next one, and theirs may not. So our
directory is moved back to the front: before this process executes a program, and in what its child processes inherit.
"""

import os


def reorder(environ, directory):
    """Moves the directory to the front of PYTHONPATH, if it is in it and meant for this process."""
    path = environ.get("PYTHONPATH", "").split(os.pathsep)
    if environ.get("SUPERVISE_AGENT") == directory and directory in path[1:]:
        others = [entry for entry in path if entry != directory]
        environ["PYTHONPATH"] = os.pathsep.join([directory] + others)


def install(directory):
    """From now on, programs that this process executes have the directory first on PYTHONPATH."""
    execv, execve = os.execv, os.execve

    def execv_first(path, argv, /):
        _quietly(os.environ, directory)
        return execv(path, argv)

    def execve_first(path, argv, env):
        if isinstance(env, dict):
            env = dict(env)
        _quietly(env, directory)
        return execve(path, argv, env)

    # `os.supports_fd` holds the functions themselves, so the wrapper has to be added.
    if execve in os.supports_fd:
        os.supports_fd.add(execve_first)
    os.execv, os.execve = execv_first, execve_first


def _quietly(environ, directory):
    # An environment of bytes, or one that is not a mapping, is left as the caller gave it.
    try:
        reorder(environ, directory)
    except Exception:
        pass
