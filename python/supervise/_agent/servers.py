"""Hooks for each server: they wrap the application where the server keeps it, so that its requests are counted.

A hook is called with the module of the server, right after the import of the module.
"""

import os

from . import counting, page, protocol, routes

# gunicorn workers that call `self.wsgi` as WSGI themselves. Others pass it to another server that is hooked itself
# (uvicorn's), or check its type (aiohttp's).
WSGI_WORKERS = ("gunicorn.workers.sync", "gunicorn.workers.gthread", "gunicorn.workers.base_async")


def gunicorn(module):
    def loaded(worker, result):
        if any(base.__module__ in WSGI_WORKERS for base in type(worker).__mro__):
            worker.wsgi = _counted(counting.wsgi, worker.wsgi)
        page.ready()
        page.listens(worker.sockets)

    after(module.Worker, "load_wsgi", loaded)


def gunicorn_asgi(module):
    def loaded(worker, result):
        worker.asgi = _counted(counting.asgi, worker.asgi)
        page.ready()
        page.listens(worker.sockets)

    after(module.ASGIWorker, "load_wsgi", loaded)


def uvicorn(module):
    """uvicorn loads its application here, in the process that serves it, also as a worker of gunicorn."""

    def loaded(config, result):
        config.loaded_app = _counted(counting.asgi, config.loaded_app)
        page.ready()

    after(module.Config, "load", loaded)


def uvicorn_server(module):
    original = module.Server.startup

    async def startup(self, *args, **kwargs):
        result = await original(self, *args, **kwargs)
        try:
            page.listens([sock for server in self.servers for sock in server.sockets or ()])
            _open_file(self.config.uds)
            if self.started:
                # For the parent of --workers (`boot_failures_uvicorn.py`).
                page.serves(os.getppid())
        except Exception:
            page.swallowed()
        return result

    module.Server.startup = startup


def _open_file(uds):
    """Restores the usual mode of the file of a Unix socket.

    The supervisor removes all permissions from the file during a stop. If it is killed then, uvicorn would give its
    next socket the mode of the old file.
    """
    if uds and os.stat(uds).st_mode & 0o777 == 0:
        os.chmod(uds, 0o666)


def daphne(module):
    def made(server, result):
        server.application = _counted(counting.asgi, server.application)
        page.ready()

    def listening(server, port):
        page.listens([port.socket])

    after(module.Server, "__init__", made)
    before(module.Server, "listen_success", listening)


def hypercorn(module):
    def asgi(wrapper, result):
        wrapper.app = _counted(counting.asgi, wrapper.app)

    def wsgi(wrapper, result):
        wrapper.app = _counted(counting.wsgi, wrapper.app)

    after(module.ASGIWrapper, "__init__", asgi)
    after(module.WSGIWrapper, "__init__", wsgi)


def hypercorn_worker(module):
    """Hooks the start of a worker. The parent may also load the application, to watch its files, but serves nothing."""

    def serving(app, config, *, sockets=None, **kwargs):
        page.ready()
        if sockets is not None:
            page.listens([*sockets.secure_sockets, *sockets.insecure_sockets])

    before(module, "worker_serve", serving)


def granian_asgi(module):
    _granian(module, counting.asgi)


def granian_wsgi(module):
    _granian(module, counting.wsgi)


def _granian(module, wrap):
    original = module._callback_wrapper

    def _callback_wrapper(callback, *args, **kwargs):
        try:
            callback = _counted(wrap, callback)
            page.ready()
        except Exception:
            page.swallowed()
        return original(callback, *args, **kwargs)

    module._callback_wrapper = _callback_wrapper


def waitress(module):
    def made(server, result):
        server.application = _counted(counting.wsgi, server.application)
        page.ready()
        page.listens([server.socket])

    after(module.BaseWSGIServer, "__init__", made)


def werkzeug(module):
    """Hooks `serve_forever`, not `__init__`: the parent of a reloader creates a server, too, but does not serve."""

    def serving(server, *args, **kwargs):
        server.app = _counted(counting.wsgi, server.app)
        page.ready()
        page.listens([server.socket])

    before(module.BaseWSGIServer, "serve_forever", serving)


def django(module):
    original = module.run

    def run(addr, port, wsgi_handler, *args, **kwargs):
        try:
            wsgi_handler = _counted(counting.wsgi, wsgi_handler)
            page.ready()
        except Exception:
            page.swallowed()
        return original(addr, port, wsgi_handler, *args, **kwargs)

    module.run = run


def celery(module):
    """Counts tasks by celery's signals. Each signal takes microseconds, so the time is recorded, too."""
    if not counting.COUNTS:
        return
    # The ids of tasks that are started and not finished. For a task that was refused before it ran, celery sends only
    # the second signal.
    running = set()

    def begin(task_id=None, task=None, **_):
        running.add(task_id)
        counting.begin_timed(getattr(task, "name", None))

    def end(task_id=None, task=None, **_):
        if task_id in running:
            running.discard(task_id)
            counting.finish_timed()
            routes.task(getattr(task, "name", None))

    page.flag(protocol.COUNTING)
    module.task_prerun.connect(_safe(begin), weak=False)
    module.task_postrun.connect(_safe(end), weak=False)
    module.worker_process_init.connect(_safe(lambda **_: page.ready()), weak=False)


def celery_trace(module):
    """Makes reports find running tasks. The function that runs a task is defined inside `build_tracer`."""
    for code in module.build_tracer.__code__.co_consts:
        if getattr(code, "co_name", None) == "trace_task":
            counting.WRAPPER_CODES += ((code, "uuid"),)


def after(owner, name, act):
    """Calls `act(self, result)` after each call of the method `name`. Errors of `act` are swallowed."""
    original = getattr(owner, name)

    def method(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        try:
            act(self, result)
        except Exception:
            page.swallowed()
        return result

    replace(owner, name, original, method)


def before(owner, name, act):
    """Calls `act` with the same arguments before each call of the function `name`. Errors of `act` are swallowed."""
    original = getattr(owner, name)

    def function(*args, **kwargs):
        try:
            act(*args, **kwargs)
        except Exception:
            page.swallowed()
        return original(*args, **kwargs)

    replace(owner, name, original, function)


def replace(owner, name, original, replacement):
    replacement.__name__ = name
    replacement.__qualname__ = getattr(original, "__qualname__", name)
    replacement.__module__ = original.__module__
    replacement.__doc__ = original.__doc__
    replacement.__wrapped__ = original
    setattr(owner, name, replacement)


def _counted(wrap, app):
    """The application in its wrapper. If another hook has wrapped it already, that wrapper is replaced."""
    if not counting.COUNTS:
        return app
    page.flag(protocol.COUNTING)
    return wrap(counting.bare(app))


def _safe(receiver):
    def safe(**kwargs):
        try:
            receiver(**kwargs)
        except Exception:
            page.swallowed()

    return safe
