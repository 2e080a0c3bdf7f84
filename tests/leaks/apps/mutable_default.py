"""`seen=[]` in the signature: one list for all calls."""
# leak: mutable default argument
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: mutable_default.track
# outcome: recycled

from flask import Flask, request

from lib import daily

app = Flask(__name__)


def track(number, seen=[]):
    points = [b"point %d " % point * 25 for point in range(1000)]  # <-- leaks here
    seen.append(points)
    return len(seen)


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    track(number)
    return daily.answer()
