"""Which module of which server is hooked by what. Only names: the code is loaded when one is met."""

import os
import sys

# Module of the server -> functions of ours, each with its file.
HOOKS = {
    "gunicorn.arbiter": ("boot_failures.arbiter",),
    "gunicorn.workers.base": ("servers.gunicorn", "boot_failures.worker"),
    "gunicorn.workers.gasgi": ("servers.gunicorn_asgi", "drain_gunicorn.asgi"),
    "gunicorn.workers.gthread": ("drain_gunicorn.gthread",),
    "uvicorn.config": ("servers.uvicorn", "drain_uvicorn.config"),
    "uvicorn.server": ("servers.uvicorn_server", "drain_uvicorn.server"),
    "uvicorn.supervisors.multiprocess": ("drain_uvicorn.parent",),
    "hypercorn.app_wrappers": ("servers.hypercorn",),
    "hypercorn.config": ("drain_hypercorn.config",),
    "hypercorn.asyncio.run": ("servers.hypercorn_worker", "drain_hypercorn.worker"),
    "hypercorn.trio.run": ("servers.hypercorn_worker",),
    "granian.asgi": ("servers.granian_asgi",),
    "granian.wsgi": ("servers.granian_wsgi",),
    "waitress.server": ("servers.waitress", "drain_waitress.server"),
    "werkzeug.serving": ("servers.werkzeug",),
    "django.core.servers.basehttp": ("servers.django",),
    "celery.signals": ("servers.celery",),
    "celery.app.trace": ("servers.celery_trace",),
}


def apply(module):
    """Hooks a module of a server that has just been imported."""
    for hook in HOOKS[module.__name__]:
        home, name = hook.split(".")
        if home.startswith("drain") and not _drains():
            continue
        package = __package__ + "." + home
        __import__(package)
        getattr(sys.modules[package], name)(module)


def _drains():
    try:
        return float(os.environ.get("SUPERVISE_AGENT_DRAIN") or 0) > 0
    except ValueError:
        return False
