"""A task for each request waits for an event that nobody sets."""
# leak: asyncio tasks never ending
# serve: gunicorn -w 1 -k uvicorn_worker.UvicornWorker {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: asyncio_tasks.WATCHERS asyncio_tasks.STOP
# outcome: recycled

import asyncio
from urllib.parse import parse_qs

from lib import asgi, daily

WATCHERS = set()
STOP = asyncio.Event()


async def watch(number):
    rows = [(row, f"row {row} of {number}") for row in range(2000)]  # <-- leaks here
    await STOP.wait()
    rows.clear()


@asgi.app
async def app(scope):
    number = int(parse_qs(scope["query_string"])[b"n"][0])
    daily.work(number)
    WATCHERS.add(asyncio.create_task(watch(number)))  # <-- leaks here
    return daily.answer()
