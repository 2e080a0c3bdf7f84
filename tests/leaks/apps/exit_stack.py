"""What is to be cleaned up at the end is pushed on one stack for the whole process."""
# leak: ExitStack of the process
# serve: gunicorn -w 1 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: exit_stack.CLEANUP
# outcome: recycled

from contextlib import ExitStack

from flask import Flask, request

from lib import daily

app = Flask(__name__)
CLEANUP = ExitStack()


class Workspace:
    def __init__(self, number):
        self.files = {f"{number}/{name}.txt": [name] for name in range(1300)}  # <-- leaks here

    def remove(self):
        self.files.clear()


@app.get("/")
def index():
    number = int(request.args["n"])
    daily.work(number)
    CLEANUP.callback(Workspace(number).remove)
    return daily.answer()
