"""The last requests are kept in a deque that has no `maxlen`."""
# leak: deque without maxlen
# serve: gunicorn -w 2 --threads 2 {module}:app
# limits: --ceiling 120M
# rate: 120
# verdict: python
# holder: deque_unbounded.LATEST
# outcome: recycled

from collections import deque

from flask import Flask, request

from lib import daily

app = Flask(__name__)
LATEST = deque()


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    for event in range(1300):
        LATEST.append({"number": number, "event": event})  # <-- leaks here
    return daily.answer()
