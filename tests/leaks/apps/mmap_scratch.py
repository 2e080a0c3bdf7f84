"""Anonymous maps as scratch space, kept open by their number."""
# leak: anonymous mmap kept open
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: native
# holder: mmap_scratch.MAPS
# outcome: recycled

import mmap

from flask import Flask, request

from lib import daily

app = Flask(__name__)
MAPS = {}


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    scratch = mmap.mmap(-1, 300_000)  # <-- leaks here
    scratch.write(b"x" * 300_000)
    MAPS[number] = scratch
    return daily.answer()
