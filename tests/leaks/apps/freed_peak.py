"""Any thread makes an export now and then. It is freed, and stays in the arena of its thread."""
# leak: freed peaks
# serve: gunicorn -w 1 --threads 4 {module}:app
# limits: --ceiling 120M
# verdict: freed
# holder: -
# line: -
# outcome: stays

import threading
import time

from flask import Flask, request

from lib import daily

app = Flask(__name__)
ONE = threading.Lock()
MINE = threading.local()


def export():
    with ONE:
        pages = [b"%d," % page * 8_000 for page in range(10_000, 10_750)]
        # A preview: one page of them, but the last one, and the heap cannot shrink below it.
        MINE.preview = pages[-1]


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    time.sleep(0.01)
    if number % 45 == 44:
        export()
    return daily.answer()
