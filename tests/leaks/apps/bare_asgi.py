"""An ASGI application without a framework keeps what it has read for each request."""
# leak: module-level dict in a bare ASGI application
# serve: gunicorn -w 1 -k uvicorn_worker.UvicornWorker {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: bare_asgi.READ
# rank: 1
# advice: limit its size
# outcome: recycled

from urllib.parse import parse_qs

from lib import asgi, daily

READ = {}


@asgi.app
async def app(scope):
    number = int(parse_qs(scope["query_string"])[b"n"][0])
    daily.work(number)
    READ[number] = [f"line {line} of {number}" for line in range(2000)]  # <-- leaks here
    return daily.answer()
