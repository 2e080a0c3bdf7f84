"""The collector is on, but its threshold was raised until it never runs."""
# leak: reference cycles with a huge gc threshold
# serve: gunicorn -w 1 --threads 2 {module}:app
# limits: --ceiling 120M
# verdict: garbage
# holder: -
# outcome: stays

import gc

from flask import Flask, request

from lib import daily

app = Flask(__name__)
gc.set_threshold(100_000_000, 50, 50)


class Document:
    def __init__(self, number):
        self.text = f"page {number} " * 32_000  # <-- leaks here
        self.handlers = {"save": self.save, "close": self.close}

    def save(self):
        return len(self.text)

    def close(self):
        self.handlers.clear()


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    Document(number).save()
    return daily.answer()
