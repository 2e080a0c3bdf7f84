"""The agent finds the route of a request, and counts the requests of each route.

    python test_routes.py PACKAGE        PACKAGE is the folder that holds the package of the agent
"""

import os
import sys
import tempfile
import time
import unittest

PACKAGE = sys.argv.pop(1)
sys.path.insert(0, PACKAGE)

from _agent import protocol  # noqa: E402

HOME = tempfile.TemporaryDirectory()
os.environ["SUPERVISE_AGENT"] = HOME.name
with open(HOME.name + "/page", "wb") as file:
    header = protocol.words(bytearray(protocol.SLOT_BYTES))
    header[protocol.MAGIC] = protocol.MAGIC_NUMBER
    header[protocol.SLOTS] = 2
    header[protocol.SLOT_LENGTH] = protocol.SLOT_BYTES
    header[protocol.ROUTES_VERSION] = protocol.AREAS_VERSION
    file.write(header)
    file.truncate(8 * (protocol.FIRST_AREA + 2 * protocol.AREA_WORDS))

from _agent import counting, page, routes  # noqa: E402


def counted():
    """The requests of each route in the area of this process."""
    area = page.routes
    found = {"other": area[protocol.ROUTES]}
    for index in range(protocol.ROUTES):
        first = protocol.FIRST_NAME + index * protocol.NAME_WORDS
        name = bytes(area.cast("B")[(first + 1) * 8 : (first + 1) * 8 + area[first]]).decode()
        if area[index]:
            found[name] = found.get(name, 0) + area[index]
    return {name: number for name, number in found.items() if number}


class Routes(unittest.TestCase):
    def setUp(self):
        page._forked()
        page.claim()
        self.assertEqual(counted(), {})

    def test_a_hook_is_called_at_the_begin_of_each_request_until_it_is_removed(self):
        app = counting.wsgi(lambda environ, start_response: [])
        called = []
        before = page.slot[protocol.STARTED]
        counting.on_begin(lambda: called.append(page.slot[protocol.STARTED]))
        app({"PATH_INFO": "/"}, None)
        app({"PATH_INFO": "/"}, None)
        self.assertEqual(called, [before, before + 1])
        counting.on_begin(None)
        app({"PATH_INFO": "/"}, None)
        self.assertEqual(len(called), 2)
        self.assertEqual(page.slot[protocol.STARTED], before + 3)
        self.assertEqual(counted(), {"/": 3})

    def test_numbers_and_ids_in_a_path_are_replaced(self):
        expected = {
            "/": "/",
            "/users/17": "/users/{n}",
            "/users/17/": "/users/{n}/",
            "/v2/orders/order1234": "/v2/orders/order{n}",
            "/f/3f2504e0-4f89-11d3-9a0c-0305e82c3301": "/f/{id}",
            "/f/deadbeef01": "/f/{id}",
            "/f/facade-added": "/f/facade-added",
            "/t/" + "x" * 41: "/t/{id}",
            "": "",
            "*": "*",
        }
        self.assertEqual({path: routes.fold(path) for path in expected}, expected)
        self.assertLess(len(routes.fold("/a" * 10000)), 300)

    def test_requests_of_a_wsgi_application_are_counted_by_path(self):
        app = counting.wsgi(lambda environ, start_response: [b""])
        for number in range(3):
            app({"PATH_INFO": "/users/%d" % number}, None)
        app({"PATH_INFO": "/"}, None)
        app({}, None)
        self.assertEqual(counted(), {"/users/{n}": 3, "/": 1, "other": 1})

    def test_while_a_request_is_in_progress_its_path_and_its_begin_are_written_down(self):
        seen = []

        def app(environ, start_response):
            text = bytes(page.routes.cast("B")[protocol.LAST_BEGUN :][: protocol.LAST_BEGUN_BYTES])
            seen.append(text.rstrip(b"\0").decode("utf-8", "ignore"))
            self.assertLess(time.monotonic_ns() - page.slot[protocol.BEGUN_NS], 5 * 10**9)
            self.assertEqual(page.slot[protocol.STARTED] - page.slot[protocol.FINISHED], 1)
            return [b""]

        for path in ("/users/17", "/", "/" + "x" * 99, "/" + "\u20ac" * 40, None):
            counting.wsgi(app)({"PATH_INFO": path}, None)
        self.assertEqual(seen, ["/users/17", "/", "/" + "x" * 47, "/" + "\u20ac" * 15, ""])

    def test_a_request_that_raises_is_counted(self):
        def app(environ, start_response):
            raise ValueError

        with self.assertRaises(ValueError):
            counting.wsgi(app)({"PATH_INFO": "/a"}, None)
        self.assertEqual(counted(), {"/a": 1})

    def test_a_request_is_counted_once_when_its_answer_is_closed(self):
        app = counting.wsgi(lambda environ, start_response: (part for part in [b""]))
        answer = app({"PATH_INFO": "/a"}, None)
        self.assertEqual(counted(), {})
        answer.close()
        answer.close()
        self.assertEqual(counted(), {"/a": 1})

    def test_a_request_without_a_template_is_counted_as_other_where_others_have_one(self):
        routes.wsgi({"PATH_INFO": "/nothing", routes.KEY: False})
        routes.wsgi({"PATH_INFO": "/users/7", routes.KEY: "/users/<int:id>"})
        routes.wsgi({"PATH_INFO": "/static/a.css"})
        self.assertEqual(counted(), {"/users/<int:id>": 1, "other": 2})

    def test_requests_of_an_asgi_application_are_counted_by_template_or_path(self):
        async def app(scope, receive, send):
            if scope["path"] == "/items/7":
                scope[routes.KEY] = "/items/{id}"

        async def lifespan(scope, receive, send):
            pass

        for scope in (
            {"type": "http", "path": "/users/1"},
            {"type": "http", "path": "/items/7"},
            {"type": "http", "path": "/nothing"},
        ):
            self.assertRaises(StopIteration, counting.asgi(app)(scope, None, None).send, None)
        scope = {"type": "lifespan"}
        self.assertRaises(StopIteration, counting.asgi(lifespan)(scope, None, None).send, None)
        self.assertEqual(counted(), {"/users/{n}": 1, "/items/{id}": 1, "other": 1})

    def test_the_first_64_routes_have_their_own_counters(self):
        for number in range(70):
            for _ in range(2):
                routes.task("shop.tasks.task%d" % number)
        found = counted()
        self.assertEqual(found.pop("other"), 12)
        self.assertEqual(found, {"shop.tasks.task%d" % number: 2 for number in range(64)})

    def test_any_number_of_paths_takes_a_bounded_amount_of_memory(self):
        for number in range(3 * routes.PATHS_MAX):
            routes.wsgi({"PATH_INFO": "/users/%d" % number})
        self.assertLessEqual(len(routes._table.known), routes.PATHS_MAX)
        self.assertEqual(counted(), {"/users/{n}": 3 * routes.PATHS_MAX})

    def test_a_request_with_any_values_harms_nothing(self):
        for path in (None, 7, b"/a", ["x"], "\udc80", "/a\n", "/\x00"):
            routes.wsgi({"PATH_INFO": path})
        routes.wsgi({routes.KEY: ["x"]})
        routes.asgi({})
        routes.task(None)
        routes.wsgi({"PATH_INFO": "/a"})
        self.assertEqual(sum(counted().values()), 9)

    def test_a_child_counts_from_zero(self):
        routes.wsgi({"PATH_INFO": "/a"})
        page._forked()
        page.claim()
        routes.wsgi({"PATH_INFO": "/b"})
        self.assertEqual(counted(), {"/b": 1})


if __name__ == "__main__":
    unittest.main()
