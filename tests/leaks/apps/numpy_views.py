"""Only the first row of each matrix is kept, as a view that keeps the matrix."""
# leak: numpy views that keep large arrays
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: numpy_views.ROWS
# advice: .copy()
# outcome: recycled

import numpy as np
from flask import Flask, request

from lib import daily

app = Flask(__name__)
ROWS = []


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    matrix = np.full((200, 160), float(number))  # <-- leaks here
    ROWS.append(matrix[0])
    return daily.answer()
