"""A class is generated for the answer to each request, and kept by its name."""
# leak: generated classes per request
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: generated_classes.MODELS
# outcome: recycled

from flask import Flask, request

from lib import daily

app = Flask(__name__)
MODELS = {}


class Model:
    def __init__(self, **values):
        self.__dict__.update(values)


def model_of(name, fields):
    body = {field: property(lambda self, field=field: field) for field in fields}  # <-- leaks here
    body["__doc__"] = f"The answer {name}."
    MODELS[name] = type(name, (Model,), body)  # <-- leaks here
    return MODELS[name]


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    for part in range(12):
        model_of(f"Answer{number}_{part}", [f"field_{field}" for field in range(60)])
    return daily.answer()
