"""An extension keeps a copy of every request in `app.extensions`."""
# leak: Flask globals (app.extensions)
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: flask_extensions.app
# outcome: recycled

from flask import Flask, current_app, g, request

from lib import daily

app = Flask(__name__)
app.extensions["audit"] = {"entries": []}


@app.before_request
def begin():
    number = request.args["n"]
    g.trail = [{"step": step, "at": f"{step}:{number}"} for step in range(950)]  # <-- leaks here


@app.after_request
def end(response):
    current_app.extensions["audit"]["entries"].append((request.full_path, g.trail))
    return response


@app.get("/")
def index():
    daily.work(int(request.args["n"]))
    return daily.answer()
