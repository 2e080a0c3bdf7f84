"""Work is queued for a consumer that was never started."""
# leak: asyncio queue without a consumer
# serve: gunicorn -k uvicorn_worker.UvicornWorker -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: asyncio_queue.OUTBOX
# outcome: recycled

import asyncio
from urllib.parse import parse_qs

from lib import asgi, daily

OUTBOX = asyncio.Queue()


@asgi.app
async def app(scope):
    number = int(parse_qs(scope["query_string"])[b"n"][0])
    text = daily.work(number)
    mail = {"to": number, "text": text, "body": f"{number} " * 50_000}  # <-- leaks here
    await OUTBOX.put(mail)
    return daily.answer()
