"""Finds the binary `supervise`."""
import os
import shutil
import sys
import sysconfig
from typing import Iterator


def find() -> str:
    """The path of the binary: SUPERVISE_BINARY if it is set, else beside the Python interpreter, else in PATH."""
    named = os.environ.get("SUPERVISE_BINARY")
    if named:
        if _runs(named):
            return named
        raise FileNotFoundError("SUPERVISE_BINARY is {!r}, which is not an executable file".format(named))
    for folder in _folders():
        path = os.path.join(folder, "supervise")
        if _runs(path):
            return path
    found = shutil.which("supervise")
    if found:
        return found
    raise FileNotFoundError(
        "the binary `supervise` is neither beside {} nor in PATH; "
        "install it with `pip install supervise`, or set SUPERVISE_BINARY to its path".format(sys.executable)
    )


def _folders() -> Iterator[str]:
    if sys.executable:
        yield os.path.dirname(sys.executable)
    yield sysconfig.get_path("scripts")
    user = "{}_user".format(os.name)
    if user in sysconfig.get_scheme_names():
        yield sysconfig.get_path("scripts", user)


def _runs(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)
