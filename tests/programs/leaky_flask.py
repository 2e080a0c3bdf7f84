"""A Flask service that leaks LEAK_KB on every request to `/`, with paths for a runaway and a slow answer."""

import time

from flask import Flask, request

import leak

app = Flask(__name__)


@app.get("/")
def hello():
    leak.keep()
    return leak.answer()


@app.get("/pid")
def pid():
    return leak.answer()


@app.get("/alloc")
def alloc():
    leak.run_away(float(request.args["mb"]), float(request.args.get("rate", "1000")))
    return leak.answer()


@app.get("/sleep")
def sleep():
    time.sleep(float(request.args["s"]))
    return leak.answer()
