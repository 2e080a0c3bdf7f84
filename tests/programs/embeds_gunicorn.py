"""gunicorn embedded in a program of another name."""

import os

from gunicorn.app.base import BaseApplication


def app(environ, start_response):
    start_response("200 OK", [])
    return [b"ok"]


class Embedded(BaseApplication):
    def load_config(self):
        self.cfg.set("bind", "127.0.0.1:" + os.environ["PORT"])
        self.cfg.set("workers", 2)

    def load(self):
        return app


if __name__ == "__main__":
    Embedded().run()
