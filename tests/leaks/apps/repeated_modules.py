"""A file of rules is loaded for each request, each time under a new name."""
# leak: modules under new names
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: sys.modules
# advice: loaded again and again
# outcome: recycled

import importlib.util
import os
import sys
import tempfile

from flask import Flask, request

from lib import daily

app = Flask(__name__)
RULES = os.path.join(tempfile.gettempdir(), f"rules-{os.getpid()}.py")
with open(RULES, "w") as out:
    out.write("RULES = {n: ('rule %d' % n, n * 1.5) for n in range(1000)}\n")


def load(number):
    spec = importlib.util.spec_from_file_location(f"rules_{number}", RULES)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)  # <-- leaks here
    return module


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    load(number)
    return daily.answer()
