"""An in-memory database that gets rows and never loses one: the memory is SQLite's own."""
# leak: C-extension memory (sqlite3)
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: native
# holder: sqlite_memory.DATABASE -
# line: -
# outcome: recycled

import sqlite3

from flask import Flask, request

from lib import daily

app = Flask(__name__)
DATABASE = sqlite3.connect(":memory:", check_same_thread=False)
DATABASE.execute("create table hits (number integer, text text)")


@app.get("/")
def index():
    number = int(request.args["n"])
    text = daily.work(number) * 10
    rows = [(number, f"{row} {text}") for row in range(700)]
    DATABASE.executemany("insert into hits values (?, ?)", rows)  # <-- leaks here
    DATABASE.commit()
    return daily.answer()
