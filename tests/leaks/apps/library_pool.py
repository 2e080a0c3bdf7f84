"""A client of a library whose pool forgets to drop what is broken."""
# leak: a library's pool
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# also: lib/site-packages/tinypool.py
# verdict: python
# holder: library_pool.CLIENT
# outcome: recycled

import os
import sys

from flask import Flask, request

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib", "site-packages"))

import tinypool
from lib import daily

app = Flask(__name__)
CLIENT = tinypool.Client("db.example.org:5432")


@app.get("/")
def index():
    number = int(request.args["n"])
    CLIENT.ask(daily.work(number))  # <-- leaks here
    return daily.answer()
