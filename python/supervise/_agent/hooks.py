"""The hooks for each module of a server. These are only names: a hook is loaded when its module is imported."""

import os
import sys

# Module of the server -> functions of the agent, each with its file.
HOOKS = {
    "gunicorn.arbiter": ("boot_failures.arbiter", "prepare.gunicorn"),
    "gunicorn.workers.base": ("servers.gunicorn", "boot_failures.worker", "after_drain.gunicorn", "streams_wsgi.worker"),
    "gunicorn.workers.gasgi": ("servers.gunicorn_asgi", "drain_gunicorn.asgi", "after_drain.gunicorn_asgi"),
    "gunicorn.asgi.lifespan": ("after_drain.lifespan",),
    "gunicorn.workers.gthread": ("drain_gunicorn.gthread", "streams_wsgi.gthread"),
    "uvicorn.config": ("servers.uvicorn", "drain_uvicorn.config"),
    "uvicorn.server": ("servers.uvicorn_server", "after_drain.uvicorn", "drain_uvicorn.server"),
    "uvicorn.lifespan.on": ("after_drain.lifespan",),
    "uvicorn.lifespan.off": ("after_drain.lifespan",),
    "uvicorn.supervisors.multiprocess": ("boot_failures_uvicorn.parent", "drain_uvicorn.parent"),
    "daphne.server": ("servers.daphne", "drain_daphne.server"),
    "daphne.http_protocol": ("drain_daphne.protocol",),
    "daphne.ws_protocol": ("drain_daphne.websocket",),
    "hypercorn.app_wrappers": ("servers.hypercorn",),
    "hypercorn.config": ("drain_hypercorn.config",),
    "hypercorn.run": ("boot_failures_hypercorn.parent",),
    "hypercorn.asyncio.run": ("servers.hypercorn_worker", "drain_hypercorn.worker"),
    "hypercorn.trio.run": ("servers.hypercorn_worker",),
    "granian.asgi": ("servers.granian_asgi", "drain_granian.asgi"),
    "granian.wsgi": ("servers.granian_wsgi", "drain_granian.wsgi"),
    "granian._signals": ("drain_granian.signals",),
    "granian.server.common": ("boot_failures_granian.parent", "drain_granian.server"),
    "huey.consumer": ("drain_huey.consumer", "tasks.huey"),
    "pyuwsgi": ("boot_failures_uwsgi.worker",),
    "rq.worker": ("drain_rq.worker", "tasks.rq"),
    "rq.worker.base": ("drain_rq.worker",),
    "rq.worker.worker_classes": ("tasks.rq",),
    "taskiq.receiver.receiver": ("tasks.taskiq",),
    "dramatiq.worker": ("tasks.dramatiq",),
    "waitress.server": ("servers.waitress", "drain_waitress.server"),
    "werkzeug.serving": ("servers.werkzeug",),
    "django.core.servers.basehttp": ("servers.django",),
    "django.core.handlers.base": ("routes.django",),
    "flask.ctx": ("routes.flask",),
    "starlette.routing": ("routes.starlette",),
    "falcon.app": ("routes.falcon",),
    "celery.signals": ("servers.celery",),
    "celery.app.trace": ("servers.celery_trace",),
}


def apply(module):
    """Hooks a module of a server that has just been imported."""
    for hook in HOOKS[module.__name__]:
        if not hook.startswith(("drain", "stream")) or _drains():
            _call(hook, module)


def apply_to_program():
    """Hooks the program in which this interpreter is embedded."""
    if "uwsgi" in os.path.basename(sys.executable or ""):
        _call("boot_failures_uwsgi.worker", None)


def _call(hook, module):
    home, name = hook.split(".")
    package = __package__ + "." + home
    __import__(package)
    getattr(sys.modules[package], name)(module)


def _drains():
    try:
        return float(os.environ.get("SUPERVISE_AGENT_DRAIN") or 0) > 0
    except ValueError:
        return False
