"""A Flask service of twenty routes, `/r0/1` to `/r19/1`, of which `/r7/<item>` keeps LEAK_KB for each request."""

from flask import Flask

import leak

app = Flask(__name__)


def route(number):
    def view(item):
        if number == 7:
            leak.keep()
        return leak.answer()

    app.add_url_rule("/r%d/<int:item>" % number, "r%d" % number, view)


for number in range(20):
    route(number)
