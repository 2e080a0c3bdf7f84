"""Sixteen bytes of every upload are kept, as a view: the view keeps the whole upload."""
# leak: small memoryviews of big buffers
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: small_slices.HEADS
# outcome: recycled

from flask import Flask, request

from lib import daily

app = Flask(__name__)
HEADS = {}


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    upload = b"upload %d " % number * 25_000  # <-- leaks here
    HEADS[number] = memoryview(upload)[:16]  # <-- leaks here
    return daily.answer()
