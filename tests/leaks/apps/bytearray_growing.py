"""One buffer collects what every request sends, and is never flushed."""
# leak: a growing bytearray
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: bytearray_growing.BUFFER
# outcome: recycled

from flask import Flask, request

from lib import daily

app = Flask(__name__)
BUFFER = bytearray()


@app.get("/")
def index():
    number = int(request.args["n"])
    line = daily.work(number).encode()
    BUFFER.extend(line * 7000)  # <-- leaks here
    return daily.answer()
