"""A WSGI application without a framework keeps the body of each answer, from nine calls deep."""
# leak: module-level list in a bare WSGI application
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: bare_wsgi.SENT
# rank: 1
# advice: remove entries
# outcome: recycled

from urllib.parse import parse_qs

from lib import daily

SENT = []


def deep(calls, number):
    if calls:
        return deep(calls - 1, number)
    return [f"line {line} of {number}" for line in range(2000)]  # <-- leaks here


def app(environ, start_response):
    number = int(parse_qs(environ["QUERY_STRING"])["n"][0])
    daily.work(number)
    SENT.append(deep(8, number))
    body = daily.answer().encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
