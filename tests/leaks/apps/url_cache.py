"""A cache of rendered pages keyed by the whole URL, with its query string."""
# leak: dict cache keyed by URL
# serve: gunicorn -w 1 --threads 4 {module}:app
# limits: --ceiling 120M
# verdict: python
# holder: url_cache.PAGES
# outcome: recycled

from flask import Flask, request

from lib import daily

app = Flask(__name__)
PAGES = {}


def render(number):
    head = daily.work(number)
    return f"<h1>{head}</h1>" + f"<p>{number}</p>" * 25_000  # <-- leaks here


@app.get("/")
def index():
    if request.url not in PAGES:
        PAGES[request.url] = render(int(request.args["n"])).encode()  # <-- leaks here
    return daily.answer()
