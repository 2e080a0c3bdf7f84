"""Every request adds a handler with a buffer to the same logger: each line is kept by each."""
# leak: log handlers added per request
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: log_handlers.log logging.Logger logging.root
# outcome: recycled

import io
import logging

from flask import Flask, request

from lib import daily

app = Flask(__name__)
log = logging.getLogger("orders")
log.setLevel(logging.INFO)
log.propagate = False


@app.get("/")
def index():
    number = int(request.args["n"])
    log.addHandler(logging.StreamHandler(io.StringIO()))  # <-- leaks here
    log.info("request %d: %s", number, daily.work(number) * 60)  # <-- leaks here
    return daily.answer()
