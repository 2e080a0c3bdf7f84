"""Keeps uWSGI running when a worker cannot load its application while another worker serves.

With `lazy-apps` each worker loads the application itself. If that fails, uWSGI stops as a whole with `need-app`, and
without it the worker answers each request with an error. That is right at the first start. Later it turns the loss of
one worker into the loss of the service. So while another worker serves, the worker waits and exits with status 1, for
which uWSGI starts another one.

uWSGI prints the exception with `PyErr_Print`, which calls `sys.excepthook`.
"""

import os
import sys
import time

from . import page

# For this status uWSGI starts another worker.
STATUS = 1

# Seconds before the exit, because uWSGI starts the next worker at once.
WAIT = 5.0


def worker(_module):
    """Wraps `sys.excepthook` for the workers that will be forked."""
    original = sys.excepthook

    def excepthook(kind, value, traceback):
        original(kind, value, traceback)
        try:
            if not _is_replaced():
                return
        except Exception:
            page.swallowed()
            return
        sys.stderr.write(
            "This worker (pid %d) cannot load its application. Another worker serves, so it exits with status %d in "
            "%d s, and uWSGI starts a new worker (supervise)\n" % (os.getpid(), STATUS, WAIT)
        )
        sys.stderr.flush()
        time.sleep(WAIT)
        os._exit(STATUS)

    sys.excepthook = excepthook


def _is_replaced():
    """Whether this process is a worker that could not load its only application, and another worker serves."""
    uwsgi = sys.modules["uwsgi"]
    own = uwsgi.worker_id()
    if not own or not _is_unloaded(uwsgi.opt):
        return False
    workers = {one["id"]: one for one in uwsgi.workers()}
    if workers.pop(own)["apps"]:
        return False
    return any(one["apps"] and _is_alive(one["pid"]) for one in workers.values())


def _is_unloaded(options):
    """Whether the one application of these options is loaded in each worker, and is not loaded here.

    With several applications, uWSGI serves those that could be loaded.
    """
    apps = [_text(options[key]) for key in ("module", "wsgi") if options.get(key)]
    files = [key for key in ("wsgi-file", "file") if options.get(key)]
    lazy = options.get("lazy-apps") or options.get("lazy")
    if not lazy or options.get("mount") or len(apps) + len(files) != 1:
        return False
    if files:
        return not any(name.startswith("uwsgi_file_") for name in sys.modules)
    return apps[0].partition(":")[0] not in sys.modules


def _text(value):
    value = value[-1] if isinstance(value, list) else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return pid > 0
