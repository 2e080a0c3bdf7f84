"""A greenlet for each request waits for ever, with its buffer."""
# leak: greenlets never ending
# serve: gunicorn -w 1 -k gevent {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: gevent_greenlets.CLOSED gevent_greenlets.POLLERS
# outcome: recycled

import gevent
import gevent.event
from flask import Flask, request

from lib import daily

app = Flask(__name__)
CLOSED = gevent.event.Event()
POLLERS = []


def poll(number):
    page = [f"entry {entry} of {number}" for entry in range(3000)]  # <-- leaks here
    CLOSED.wait()
    page.clear()


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    POLLERS.append(gevent.spawn(poll, number))  # <-- leaks here
    return daily.answer()
