"""`weakref.finalize` with a method of the object itself: it can never be finalized."""
# leak: weakref.finalize that holds its own object
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: weakref.finalize
# outcome: recycled

import weakref

from flask import Flask, request

from lib import daily

app = Flask(__name__)


class Scratch:
    def __init__(self, number):
        self.page = bytearray(b"%d" % (number % 10)) * 300_000  # <-- leaks here
        weakref.finalize(self, self.close)

    def close(self):
        self.page = None


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    Scratch(number)
    return daily.answer()
