"""Sessions in a dict of the module: they are made and never expire."""
# leak: module-level dict
# serve: gunicorn -w 2 {module}:app
# limits: --ceiling 120M
# rate: 120
# verdict: python
# holder: module_dict.SESSIONS
# outcome: recycled

import uuid

from flask import Flask, request

from lib import daily

app = Flask(__name__)
SESSIONS = {}


class Session:
    def __init__(self, number):
        self.number = number
        self.basket = [(row, f"article {row * number}") for row in range(2400)]  # <-- leaks here


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    SESSIONS[uuid.uuid4().hex] = Session(number)
    return daily.answer()
