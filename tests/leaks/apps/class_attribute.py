"""A list that was meant for each instance is one for the class."""
# leak: class attribute list
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: class_attribute.Order
# outcome: recycled

from flask import Flask, request

from lib import daily

app = Flask(__name__)


class Order:
    lines = []

    def __init__(self, number):
        self.number = number

    def add(self, article):
        self.lines.append((self.number, article, f"no. {article}", 1.5 * article))  # <-- leaks here


@app.get("/")
def index():
    order = Order(int(request.args["n"]))
    daily.work(order.number)
    for article in range(1600):
        order.add(article)
    return daily.answer()
