"""Every request is remembered in a list of the module, for a page that nobody built."""
# leak: module-level list
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: module_list.SEEN
# outcome: recycled

from flask import Flask, request

from lib import daily

app = Flask(__name__)
SEEN = []


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    rows = [{"id": row, "user": f"user {row} of {number}"} for row in range(900)]  # <-- leaks here
    SEEN.append(rows)
    return daily.answer()
