"""The default of a context variable is one list for all contexts."""
# leak: mutable default of a ContextVar
# serve: gunicorn -w 1 --threads 2 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: contextvar_default.TRAIL
# outcome: recycled

from contextvars import ContextVar

from flask import Flask, request

from lib import daily

app = Flask(__name__)
TRAIL = ContextVar("trail", default=[])


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    for step in range(1600):
        TRAIL.get().append([step, f"step {step} of {number}"])  # <-- leaks here
    return daily.answer()
