"""Streams are opened, read once and kept: a suspended generator holds all that is in its frame."""
# leak: generators kept suspended with big locals
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: generators_suspended.OPEN
# outcome: recycled

from flask import Flask, request

from lib import daily

app = Flask(__name__)
OPEN = {}


def stream(number):
    rows = [f"{number};{row};{row * number}" for row in range(3200)]  # <-- leaks here
    for row in rows:
        yield row


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    rows = stream(number)
    next(rows)
    OPEN[number] = rows
    return daily.answer()
