"""Leaks, and builds each answer from tuples that C code fills while other threads run."""

import time

import leak


def rows():
    def slowly():
        for number in range(400):
            if number % 50 == 0:
                time.sleep(0)
            yield number

    return list(zip(tuple(slowly()), tuple(slowly())))


def app(environ, start_response):
    leak.keep()
    if sum(one + other for one, other in rows()) != 159600:
        raise ValueError("wrong rows")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [leak.answer().encode()]
