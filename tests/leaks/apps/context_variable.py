"""A thread pushes a context once, and everything that it stores there stays."""
# leak: growth in a context variable of a thread
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: context_variable.TRAIL
# advice: context variable 'trail'
# outcome: recycled

import queue
import threading
from contextvars import ContextVar

from flask import Flask, request

from lib import daily

app = Flask(__name__)
TRAIL = ContextVar("trail")
NUMBERS = queue.Queue()


def follow():
    TRAIL.set([])
    while True:
        number = NUMBERS.get()
        TRAIL.get().append([f"step {step} of {number}" for step in range(1600)])  # <-- leaks here


threading.Thread(target=follow, daemon=True).start()


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    NUMBERS.put(number)
    return daily.answer()
