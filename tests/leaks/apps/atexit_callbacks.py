"""Each export registers its own clean-up at exit, and so lives until then."""
# leak: bound methods registered with atexit
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: atexit
# advice: atexit.unregister()
# outcome: recycled

import atexit

from flask import Flask, request

from lib import daily

app = Flask(__name__)


class Export:
    def __init__(self, number):
        self.rows = {row: f"row {row} of {number}" for row in range(1800)}  # <-- leaks here
        atexit.register(self.close)

    def close(self):
        self.rows.clear()


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    Export(number)
    return daily.answer()
