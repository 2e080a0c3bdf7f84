"""A per-thread cache of rows: nobody sees it, and nobody empties it."""
# leak: thread-local growth
# serve: gunicorn -w 1 --threads 3 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: thread_local.LOCAL
# outcome: recycled

import threading

from flask import Flask, request

from lib import daily

app = Flask(__name__)
LOCAL = threading.local()


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    if not hasattr(LOCAL, "rows"):
        LOCAL.rows = {}
    LOCAL.rows[number] = [(row, f"row {row} of {number}") for row in range(2100)]  # <-- leaks here
    return daily.answer()
