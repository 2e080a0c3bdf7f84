"""Keeps the agent's directory first on PYTHONPATH when other tools put their directory before it.

Launchers such as `opentelemetry-instrument` put a directory with their own `sitecustomize` first and execute the
program. Python loads only the first `sitecustomize` on the path. The agent's loads the next one, but theirs may not. So
the agent's directory is moved back to the front before this process executes a program, and in the environment that
its child processes inherit.
"""

import os


def reorder(environ, directory):
    """Moves the directory to the front of PYTHONPATH, if it is on the path and this process uses this agent."""
    path = environ.get("PYTHONPATH", "").split(os.pathsep)
    if environ.get("SUPERVISE_AGENT") == directory and directory in path[1:]:
        others = [entry for entry in path if entry != directory]
        environ["PYTHONPATH"] = os.pathsep.join([directory] + others)


def install(directory):
    """Wraps `os.execv` and `os.execve`: programs that this process executes have the directory first on PYTHONPATH."""
    execv, execve = os.execv, os.execve

    def execv_first(path, argv, /):
        reorder_quietly(os.environ, directory)
        return execv(path, argv)

    def execve_first(path, argv, env):
        if isinstance(env, dict):
            env = dict(env)
        reorder_quietly(env, directory)
        return execve(path, argv, env)

    # `os.supports_fd` contains the functions themselves, so the wrapper must be added.
    if execve in os.supports_fd:
        os.supports_fd.add(execve_first)
    os.execv, os.execve = execv_first, execve_first


def reorder_quietly(environ, directory):
    # An environment of bytes, or one that is not a mapping, is not changed.
    try:
        reorder(environ, directory)
    except Exception:
        pass
