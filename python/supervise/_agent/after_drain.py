"""Makes a report in a worker that is replaced for its memory: after its last answer, and before its server frees what
the report is about (end of the lifespan, of the event loop, of threads, exit handlers).

The supervisor writes its request before it tells the worker to exit. No client waits for the worker any more. If its
replacement starts only after its end, the request allows very little time. A worker that ends for another reason finds
no request, and exits at once. If the service stops meanwhile, the supervisor removes the request.
"""

import atexit
import os

from . import page, servers, serving


def _leave():
    """Gives a worker a lower priority for the rest of its exit, in which no client waits for it. Until the kernel has
    freed the memory of a large worker, the requests of the others would compete with it for the processor.

    Not the lowest priority: on a machine without a free processor the exit would take half a minute, and a worker over
    its ceiling waits until the one before it has ended.
    """
    if serving.worker is not None or serving.server is not None:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, 5)
        except Exception:
            page.swallowed()


# Python calls this after the exit handlers of the application, because they are registered later.
atexit.register(_leave)


def report():
    """Makes the report if the supervisor wants one."""
    try:
        from . import ask

        if serving.may_pause() and ask.is_wanted(os.getpid()):
            ask.answer_after_drain(serving.beat())
    except Exception:
        page.swallowed()


def gunicorn(module):
    """The workers that call the application themselves. `run` returns after the last answer."""

    def follow(worker, result):
        serving.worker = worker
        worker.run = _then_report(worker.run)
        pool = getattr(worker, "tpool", None)
        if pool is not None:
            # gthread ends its threads before `run` returns, and with them what is local to these threads.
            pool.shutdown = _report_first(pool.shutdown, lambda: not worker.alive)

    servers.after(module.Worker, "load_wsgi", follow)


def gunicorn_asgi(module):
    """gunicorn's own ASGI worker. Without a lifespan, the first step after the last answer is its cleanup."""

    def follow(worker, result):
        serving.worker = worker

    servers.after(module.ASGIWorker, "load_wsgi", follow)
    servers.before(module.ASGIWorker, "_cleanup", lambda worker: report())


def uvicorn(module):
    def starting(server, *args, **kwargs):
        serving.server = server

    servers.before(module.Server, "startup", starting)


def lifespan(module):
    """The end of an application's lifespan, in gunicorn and uvicorn."""
    for name in ("LifespanManager", "LifespanOn", "LifespanOff"):
        owner = getattr(module, name, None)
        if owner is not None:
            # This makes the report when the coroutine is created, directly before it runs.
            servers.before(owner, "shutdown", lambda self: report())


def _then_report(run):
    def run_and_report():
        result = run()
        report()
        return result

    return run_and_report


def _report_first(shutdown, is_draining):
    def report_and_shut_down(*args, **kwargs):
        if is_draining():
            report()
        return shutdown(*args, **kwargs)

    return report_and_shut_down
