"""Messages are read into buffers of 24 KB, which are then cut to the length that came: what is cut
off is free, but too small for the next message."""
# leak: malloc fragmentation
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: freed
# holder: -
# line: -
# outcome: stays

from collections import deque

from flask import Flask, request

from lib import daily

app = Flask(__name__)
# Bounded, and small: 8,000 messages of 600 bytes.
LATEST = deque(maxlen=8000)


def receive(number):
    messages = [bytearray(24_000) for _ in range(14)]
    for message in messages:
        length = 560 + number % 40
        message[:length] = b"m" * length
        del message[length:]
    return messages


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    LATEST.extend(receive(number))
    return daily.answer()
