"""A history whose every entry knows the one before."""
# leak: linked list
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: linked_list.HISTORY
# outcome: recycled

from flask import Flask, request

from lib import daily

app = Flask(__name__)


class Entry:
    __slots__ = ("number", "text", "before")

    def __init__(self, number, text, before):
        self.number = number
        self.text = text
        self.before = before


class History:
    def __init__(self):
        self.last = None

    def note(self, number, text):
        self.last = Entry(number, f"{number}: {text}", self.last)  # <-- leaks here


HISTORY = History()


@app.get("/")
def index():
    number = int(request.args["n"])
    text = daily.work(number)
    for _ in range(1800):
        HISTORY.note(number, text)
    return daily.answer()
