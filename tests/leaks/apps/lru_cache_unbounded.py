"""`lru_cache(maxsize=None)` on a function whose argument never comes again."""
# leak: unbounded lru_cache
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: lru_cache_unbounded.render
# outcome: recycled

from functools import lru_cache

from flask import Flask, request

from lib import daily

app = Flask(__name__)


@lru_cache(maxsize=None)
def render(number):
    head = daily.work(number)
    return [f"<li>{head} {row} of {number}</li>" for row in range(2200)]  # <-- leaks here


@app.get("/")
def index():
    render(int(request.args["n"]))
    return daily.answer()
