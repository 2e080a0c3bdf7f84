"""Counts the tasks of queue workers, by wrapping the function that runs one. celery has signals for that (`servers.py`).

The supervisor recycles a worker after `max_tasks` tasks, and shows which tasks make workers grow.
"""

from . import counting, page, protocol, routes
from .servers import after, replace


def rq(module):
    """A worker waits for the process that runs a job, or runs the job itself."""
    for owner in list(vars(module).values()):
        own = isinstance(owner, type) and owner.__module__ == module.__name__ and owner.__name__ != "BaseWorker"
        if own and "execute_job" in vars(owner):
            _count(owner, "execute_job", lambda worker, job, *_: job.func_name)


def huey(module):
    """Processes and threads of the consumer. An application that executes a task itself is not counted."""

    def execute(worker):
        _count(worker.huey, "execute", lambda task, *_: task.name)

    after(module.Worker, "__init__", lambda worker, _: execute(worker))


def dramatiq(module):
    _count(module._WorkerThread, "process_message", lambda worker, message: message.actor_name)


def taskiq(module):
    original = module.Receiver.run_task

    async def run_task(self, target, message, *args, **kwargs):
        _begin(message.task_name)
        try:
            return await original(self, target, message, *args, **kwargs)
        finally:
            _finish(message.task_name)

    if counting.COUNTS:
        page.flag(protocol.COUNTING)
        replace(module.Receiver, "run_task", original, run_task)


def _count(owner, name, named):
    """Counts the calls of a function. `named` gets its arguments, and returns the name of the task."""
    original = getattr(owner, name)
    if not counting.COUNTS or hasattr(original, "__wrapped__"):
        return

    def counted(*args, **kwargs):
        task = _name(named, args)
        _begin(task)
        try:
            return original(*args, **kwargs)
        finally:
            _finish(task)

    page.flag(protocol.COUNTING)
    replace(owner, name, original, counted)


def _name(named, args):
    try:
        return named(*args)
    except Exception:
        page.swallowed()
        return None


def _begin(task):
    try:
        counting.begin_timed(task)
    except Exception:
        page.swallowed()


def _finish(task):
    try:
        counting.finish_timed()
        routes.task(task)
    except Exception:
        page.swallowed()
