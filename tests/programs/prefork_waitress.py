"""Two processes of waitress that share one listener, opened before the fork. Prints their pids."""

import os
import sys

import waitress.server


def app(environ, start_response):
    body = b"ok:%d\n" % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


server = waitress.server.create_server(app, host="127.0.0.1", port=int(sys.argv[1]), threads=2)
for _ in range(2):
    if os.fork() == 0:
        # The threads of the parent do not exist in the child.
        server.task_dispatcher.__init__()
        server.task_dispatcher.set_thread_count(2)
        print(os.getpid(), flush=True)
        server.run()
        os._exit(0)
for _ in range(2):
    os.wait()
