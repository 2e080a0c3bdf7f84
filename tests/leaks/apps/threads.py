"""A thread for each request waits for a word that never comes."""
# leak: threads never ending
# serve: gunicorn -w 1 --threads 2 {module}:app
# limits: --ceiling 120M
# rate: 50
# verdict: python
# holder: threading._active threads.STOP
# outcome: recycled

import threading

from flask import Flask, request

from lib import daily

app = Flask(__name__)
STOP = threading.Event()


def follow(number):
    inbox = bytearray(b"%d;" % (number % 10)) * 150_000  # <-- leaks here
    STOP.wait()
    inbox.clear()


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    threading.Thread(target=follow, args=(number,), daemon=True).start()  # <-- leaks here
    return daily.answer()
