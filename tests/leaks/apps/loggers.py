"""A logger for each request, with a name of its own and a handler: `logging` never forgets a logger."""
# leak: loggers created per request
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: logging.Logger.manager logging.root
# advice: one logger for each module
# outcome: recycled

import logging

from flask import Flask, request

from lib import daily

app = Flask(__name__)


class Memory(logging.Handler):
    def __init__(self, number):
        super().__init__()
        self.lines = [f"line {line} of {number}" for line in range(1500)]  # <-- leaks here


@app.get("/")
def index():
    number = int(request.args["n"])
    log = logging.getLogger(f"shop.request.{number}")
    log.addHandler(Memory(number))  # <-- leaks here
    daily.work(number)
    return daily.answer()
