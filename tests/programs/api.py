"""A FastAPI service that leaks LEAK_KB on every request to `/`, for `fastapi run`."""

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

import leak

app = FastAPI()


@app.get("/", response_class=PlainTextResponse)
def home():
    leak.keep()
    return leak.answer()


@app.get("/pid", response_class=PlainTextResponse)
def pid():
    return leak.answer()
