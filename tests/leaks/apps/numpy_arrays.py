"""Frames of a model's input are kept by their number."""
# leak: numpy arrays in a dict
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: numpy_arrays.FRAMES
# outcome: recycled

import numpy as np
from flask import Flask, request

from lib import daily

app = Flask(__name__)
FRAMES = {}


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    frame = np.full((180, 200), float(number))  # <-- leaks here
    FRAMES[number] = frame
    scaled = frame * 2.0
    return daily.answer() if scaled.any() or number == 0 else ""
