"""One message of protobuf is filled again for each request. Its arena frees nothing while the message lives."""
# leak: C-extension memory in threads (protobuf)
# serve: gunicorn -w 1 --threads 4 {module}:app
# limits: --ceiling 120M
# verdict: native
# holder: -
# outcome: recycled

from flask import Flask, request
from google.protobuf.wrappers_pb2 import StringValue

from lib import daily

app = Flask(__name__)
STATUS = StringValue()


def show(text):
    STATUS.value = text  # <-- leaks here


@app.get("/")
def index():
    number = int(request.args["n"])
    text = daily.work(number)
    for step in range(8):
        show(f"{step} {text} " * 600)
    return daily.answer()
