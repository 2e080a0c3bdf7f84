"""`lru_cache` on a method: each key keeps the object."""
# leak: lru_cache that keeps self
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: lru_cache_method.Profile.may
# advice: caches a method
# outcome: recycled

from functools import lru_cache

from flask import Flask, request

from lib import daily

app = Flask(__name__)


class Profile:
    def __init__(self, number):
        self.rights = [f"right {right} of {number}" for right in range(2000)]  # <-- leaks here

    @lru_cache(maxsize=None)
    def may(self, right):
        return right in self.rights


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    Profile(number).may("read")
    return daily.answer()
