"""Every request subscribes to a bus and never unsubscribes."""
# leak: callbacks list
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: callbacks.BUS
# outcome: recycled

from flask import Flask, request

from lib import daily

app = Flask(__name__)


class Bus:
    def __init__(self):
        self.listeners = {"price": [], "stock": []}

    def subscribe(self, topic, listener):
        self.listeners[topic].append(listener)


class Basket:
    def __init__(self, number):
        self.lines = [[row, number, f"line {row}"] for row in range(1500)]  # <-- leaks here

    def reprice(self, article):
        return [line for line in self.lines if line[0] == article]


BUS = Bus()


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    basket = Basket(number)
    BUS.subscribe("price", basket.reprice)
    return daily.answer()
