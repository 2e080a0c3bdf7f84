"""Each client brings its own SSL context, with all certificates in OpenSSL's memory."""
# leak: an SSL context per request
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 160M
# rate: 30
# verdict: native
# holder: ssl_contexts.CLIENTS
# advice: create it once
# outcome: recycled

import ssl

from flask import Flask, request

from lib import daily

app = Flask(__name__)
CLIENTS = []


class Client:
    def __init__(self):
        self.context = ssl.create_default_context()  # <-- leaks here


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    CLIENTS.append(Client())
    return daily.answer()
