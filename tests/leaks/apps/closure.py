"""A decorator that remembers every result of the function that it wraps."""
# leak: closure holding a list
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: closure.report
# outcome: recycled

from flask import Flask, request

from lib import daily

app = Flask(__name__)


def audited(function):
    history = []

    def inner(number):
        result = function(number)
        history.append((number, result))
        return result

    return inner


@audited
def report(number):
    daily.work(number)
    return {f"key {row} {number}": float(row) for row in range(2200)}  # <-- leaks here


@app.get("/")
def index():
    report(int(request.args["n"]))
    return daily.answer()
