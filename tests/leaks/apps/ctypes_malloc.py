"""A C library gives out buffers that the binding never gives back."""
# leak: native memory by ctypes
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: native
# holder: -
# line: -
# outcome: recycled

import ctypes

from flask import Flask, request

from lib import daily

app = Flask(__name__)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]


def transform(size):
    buffer = libc.malloc(size)  # <-- leaks here
    libc.memset(buffer, 1, size)


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    for _ in range(6):
        transform(50_000)
    return daily.answer()
