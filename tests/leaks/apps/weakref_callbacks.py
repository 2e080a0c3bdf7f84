"""The references are weak, but their list is not, and each callback holds its own object."""
# leak: weakref callbacks in a strong registry
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: weakref_callbacks.WATCHED
# outcome: recycled

import weakref

from flask import Flask, request

from lib import daily

app = Flask(__name__)
WATCHED = []


class Upload:
    def __init__(self, number):
        self.parts = [f"part {part} of {number}" for part in range(3500)]  # <-- leaks here


def watch(upload):
    # The callback is to run when the upload has gone; but it holds the upload itself.
    WATCHED.append(weakref.ref(upload, lambda _: upload.parts.clear()))


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    watch(Upload(number))
    return daily.answer()
