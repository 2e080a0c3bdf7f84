"""The collector was switched off for speed, and the tree has links to its parents."""
# leak: reference cycles with gc disabled
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: garbage
# holder: -
# outcome: stays

import gc

from flask import Flask, request

from lib import daily

app = Flask(__name__)
gc.disable()


class Node:
    def __init__(self, parent, text):
        self.parent = parent
        self.text = text
        self.children = []


def tree(number):
    root = Node(None, f"root {number}")
    for child in range(120):
        root.children.append(Node(root, f"{child} of {number}, " * 250))  # <-- leaks here
    return root


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    tree(number)
    return daily.answer()
