"""Half of the growth is a list of the module, the other half is a C library's."""
# leak: Python and native memory, half and half
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: mixed
# holder: mixed.SEEN
# outcome: recycled

import ctypes

from flask import Flask, request

from lib import daily

app = Flask(__name__)
libc = ctypes.CDLL(None)
libc.calloc.restype = ctypes.c_void_p
libc.calloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
SEEN = []


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    SEEN.append([f"visit {visit} of {number}" for visit in range(2300)])  # <-- leaks here
    libc.memset(libc.calloc(1, 160_000), 1, 160_000)
    return daily.answer()
