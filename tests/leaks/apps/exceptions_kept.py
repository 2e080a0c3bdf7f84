"""Errors are kept for a page of statistics; each holds its frames, and they hold all locals."""
# leak: exceptions kept with their frames
# serve: gunicorn -w 1 --threads 2 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: exceptions_kept.ERRORS
# outcome: recycled

from flask import Flask, request

from lib import daily

app = Flask(__name__)
ERRORS = []


def check(number):
    rows = [{"row": row, "sum": float(row * number)} for row in range(1100)]  # <-- leaks here
    if len(rows) > 1000:
        raise ValueError(f"too many rows in {number}")


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    try:
        check(number)
    except ValueError as error:
        ERRORS.append(error)
    return daily.answer()
