"""A megabyte a request: there is little time between the first sign and the ceiling."""
# leak: a fast leak
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: fast_leak.IMAGES
# outcome: recycled

from flask import Flask, request

from lib import daily

app = Flask(__name__)
IMAGES = []


@app.get("/")
def index():
    daily.work(int(request.args["n"]))
    image = bytearray(b"\1") * 1_048_576  # <-- leaks here
    IMAGES.append(image)
    return daily.answer()
