"""A gunicorn application with a dirty arbiter and one dirty worker in addition to its workers."""

from gunicorn.dirty.app import DirtyApp


class Model(DirtyApp):
    def init(self):
        pass

    def __call__(self, action, *args, **kwargs):
        return None

    def close(self):
        pass


def app(environ, start_response):
    start_response("200 OK", [])
    return [b"ok"]
