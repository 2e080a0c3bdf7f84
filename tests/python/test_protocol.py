"""The Python code of the protocol matches the vectors, as the Rust code does (`src/protocol/golden_tests.rs`).

    python test_protocol.py PACKAGE        PACKAGE is the folder that holds the packages of the agent and the pool
"""

import ast
import json
import os
import socket
import subprocess
import sys
import tempfile
import unittest

GOLDEN = os.path.join(os.path.dirname(__file__), os.pardir, "golden", "protocol")
PACKAGE = sys.argv.pop(1)
sys.path.insert(0, PACKAGE)

from _agent import protocol as agent  # noqa: E402
from _pool import protocol as pool  # noqa: E402


def vectors(name):
    with open(os.path.join(GOLDEN, name), encoding="utf-8") as file:
        found = json.load(file)
    assert found, name
    return found


def page(vector):
    """The bytes of a page in native order. The vectors are little-endian."""
    data = bytes.fromhex(vector["bytes"])
    if sys.byteorder == "big":
        data = b"".join(data[at : at + 8][::-1] for at in range(0, len(data), 8))
    return data


class Frames(unittest.TestCase):
    KINDS = {
        "order": {"task": pool.TASK, "quit": pool.QUIT, "setup": pool.SETUP, "report": pool.REPORT},
        "from_worker": {
            "hello": pool.HELLO,
            "result": pool.RESULT,
            "raised": pool.RAISED,
            "unserializable": pool.UNSERIALIZABLE,
            "failed": pool.FAILED,
            "not_begun": pool.NOT_BEGUN,
            "reported": pool.REPORTED,
        },
        "to_client": {
            "result": pool.RESULT,
            "raised": pool.RAISED,
            "unserializable": pool.UNSERIALIZABLE,
            "lost": pool.LOST,
            "credit": pool.CREDIT,
            "broken": pool.BROKEN,
        },
    }

    def test_frames_have_the_bytes_of_the_vectors(self):
        for vector in vectors("frames.json"):
            with self.subTest(vector):
                body = vector["body"].encode("latin-1")
                values = [len(body), self.KINDS[vector["frame"]][vector["kind"]], vector["task"]]
                head = pool.ORDER
                if vector["frame"] != "order":
                    values += [vector["micros"], vector["peak_kib"]]
                    head = pool.REPLY
                data = bytes.fromhex(vector["bytes"])
                self.assertEqual(head.pack(*values) + body, data)
                self.assertEqual(list(head.unpack_from(data)), values)
                self.assertEqual(data[head.size :], body)

    def test_every_kind_has_a_vector(self):
        found = {(vector["frame"], vector["kind"]) for vector in vectors("frames.json")}
        expected = {(frame, kind) for frame, kinds in self.KINDS.items() for kind in kinds}
        self.assertEqual(found, expected)

    def test_marks_have_the_bytes_of_the_vectors(self):
        for vector in vectors("marks.json"):
            secret = bytes.fromhex(vector["secret"])
            self.assertEqual(len(secret), pool.SECRET_LENGTH)
            self.assertEqual(pool.mark(secret, vector["task"]), bytes.fromhex(vector["bytes"]))


class Pages(unittest.TestCase):
    def test_pages_of_workers_have_the_bytes_of_the_vectors(self):
        places = {
            "begun": pool.BEGUN,
            "finished": pool.FINISHED,
            "receiving": pool.RECEIVING,
            "halt": pool.HALT,
            "reading": pool.READING,
            "most": pool.MOST,
            "files": pool.FILES,
            "child": pool.CHILD,
            "base": pool.BASE,
        }
        for vector in vectors("pool_pages.json"):
            data = page(vector)
            read = pool.words(memoryview(data))
            written = bytearray(len(data))
            for name, place in places.items():
                self.assertEqual(read[place], vector[name], name)
                pool.words(memoryview(written))[place] = vector[name]
            self.assertEqual(bytes(written), data)

    def test_areas_of_routes_have_the_places_of_the_vectors(self):
        for vector in vectors("agent_pages.json"):
            if vector["part"] != "routes":
                continue
            memory = bytearray(vector["area_at"] + agent.AREA_WORDS * 8)
            words = agent.words(memory)
            base = agent.SLOT_WORDS * (1 + vector["slot"])
            self.assertIsNone(agent.area(words, base), "a page without areas")
            words[agent.ROUTES_VERSION] = vector["version"]
            area = agent.area(words, base)
            area[agent.ROUTES] = 7
            self.assertEqual(words[(vector["area_at"] + vector["other_at"]) // 8], 7)
            agent.write_name(area, vector["number"], vector["name"])
            at = vector["area_at"] + vector["name_at"]
            self.assertEqual(words[at // 8], vector["name_bytes"])
            name = bytes(memory[at + 8 : at + 8 + vector["name_bytes"]])
            self.assertEqual(name.decode(), vector["name"])
            self.assertIsNone(agent.area(words[:-1], base), "a page that is too short")

    def test_a_long_name_of_a_route_is_cut_off_between_two_characters(self):
        area = agent.area_sink()
        agent.write_name(area, 0, "a" + "\u00e9" * 60)
        self.assertEqual(area[agent.FIRST_NAME], 103)
        self.assertEqual(area[agent.FIRST_NAME + agent.NAME_WORDS], 0)

    def test_headers_of_agent_pages_are_understood(self):
        vector = next(vector for vector in vectors("agent_pages.json") if vector["part"] == "header")
        words = agent.words(page(vector))
        self.assertTrue(agent.is_understood(words))
        self.assertEqual(list(agent.bases(words)), [16 * (1 + slot) for slot in range(vector["slots"])])
        self.assertEqual(words[agent.FAILED_BOOTS], 0)
        for word in (agent.MAGIC, agent.SLOT_LENGTH, agent.PAGE_VERSION):
            other = agent.words(bytearray(page(vector)))
            other[word] += 1
            self.assertFalse(agent.is_understood(other), word)
        # Pages of versions before the field was written.
        other[agent.PAGE_VERSION] = 0
        self.assertTrue(agent.is_understood(other))

    def test_slots_of_agent_pages_have_the_bytes_of_the_vectors(self):
        names = ("pid", "started", "finished", "ignored", "begun_ns", "drain", "errors", "told", "serves")
        for vector in vectors("agent_pages.json"):
            if vector["part"] != "slot":
                continue
            data = page(vector)
            read, written = agent.words(data), agent.sink()
            self.assertEqual(written[agent.FLAGS] >> 32, agent.VERSION)
            for name in names:
                place = getattr(agent, name.upper())
                self.assertEqual(read[place], vector[name], name)
                written[place] = vector[name]
            self.assertEqual([read[place] for place in agent.LISTENERS], vector["listeners"])
            for place, inode in zip(agent.LISTENERS, vector["listeners"]):
                written[place] = inode
            self.assertEqual(read[agent.FLAGS], vector["version"] << 32 | vector["flags"])
            written[agent.FLAGS] |= vector["flags"]
            if vector["version"] == agent.VERSION:
                self.assertEqual(bytes(written), data)
        self.assertEqual(agent.COUNTING | agent.DRAINING, 5)
        self.assertEqual(agent.TRACING, 2)


class Messages(unittest.TestCase):
    ENCODE = {
        "from_template": {
            "ready": lambda it: pool.ready(it["unshareable"], it["from"]),
            "failed": lambda it: pool.failed(json.dumps(it, separators=(",", ":")).encode()),
            "fork_server": lambda it: pool.fork_server(it["slot"], it["pid"]),
            "refused": lambda it: pool.refused(it["slot"], it["errno"]),
        },
    }

    def test_messages_of_the_template_have_the_text_of_the_vectors(self):
        found = set()
        for vector in vectors("template.json"):
            direction, value, text = vector["direction"], vector["value"], vector["text"]
            self.assertEqual(json.loads(text), value)
            if direction == "settings":
                self.assertEqual(value["protocol"], pool.VERSION)
                continue
            ((name, content),) = value.items()
            self.assertEqual(pool.decode(text.encode()), (name, content))
            if direction in self.ENCODE:
                self.assertEqual(self.ENCODE[direction][name](content), text.encode())
                found.add((direction, name))
            else:
                self.assertLess(len(text), pool.MESSAGE_MAX)
        expected = {(direction, name) for direction, names in self.ENCODE.items() for name in names}
        self.assertEqual(found, expected)

    def test_messages_of_fork_servers_have_the_bytes_of_the_vectors(self):
        kinds = {"forked": (pool.FORKED, "pid"), "refused": (pool.REFUSED, "errno"), "ended": (pool.ENDED, "status")}
        found = set()
        for vector in vectors("fork_server.json"):
            number, data = vector["number"], bytes.fromhex(vector["bytes"])
            found.add(vector["message"])
            if vector["message"] == "fork":
                self.assertEqual(pool.FORK.unpack(data), (number,))
                self.assertEqual(pool.FORK.pack(number), data)
                continue
            kind, value = kinds[vector["message"]]
            secret = bytes.fromhex(vector["secret"]) if "secret" in vector else pool.NO_SECRET
            values = (kind, number, vector[value], vector.get("peak_kib", 0), secret)
            self.assertEqual(pool.FORK_REPLY.pack(*values), data)
            self.assertEqual(pool.FORK_REPLY.unpack(data), values)
        self.assertEqual(found, {"fork", *kinds})

    def test_a_name_that_is_not_utf8_is_sent_as_text(self):
        self.assertEqual(pool.ready(["\udc80"], 0), b'{"ready":{"unshareable":["?"],"from":0}}')

    def test_requests_and_answers_have_the_text_of_the_vectors(self):
        for vector in vectors("questions.json"):
            value, text = vector["value"], vector["text"]
            self.assertEqual(agent.parse(text), value)
            self.assertEqual(agent.render(value), text)
            if vector["direction"] == "question":
                agent.check(agent.parse(text))
                expected = {"id": value["id"], "protocol": value["protocol"], "do": value["do"], "ok": True}
                self.assertEqual(agent.answer(value), expected)
            self.assertEqual(value["protocol"], agent.VERSION)

    def test_a_request_in_another_protocol_is_refused(self):
        agent.check({"id": 1, "do": "gc"})
        with self.assertRaisesRegex(ValueError, "the supervisor speaks protocol 2"):
            agent.check({"id": 1, "do": "gc", "protocol": 2})
        pool.check(pool.VERSION)
        with self.assertRaisesRegex(RuntimeError, "the supervisor speaks protocol 2"):
            pool.check(2)

    def test_errors_have_the_bytes_of_the_vectors(self):
        for vector in vectors("documents.json"):
            text = vector["text"].encode()
            self.assertEqual(json.loads(text), vector["value"])
            if vector["document"] == "with_pickle":
                pickled, body = bytes.fromhex(vector["pickle"]), bytes.fromhex(vector["bytes"])
                self.assertEqual(pool.with_length(text, pickled), body)
                self.assertEqual(pool.without_length(body), (text, pickled))


class Source(unittest.TestCase):
    def test_only_the_protocol_modules_know_layouts(self):
        """Only the two protocol modules use `struct` or cast a page to words."""
        wrong = []
        for folder, _, names in os.walk(PACKAGE):
            for name in names:
                if not name.endswith(".py") or name == "protocol.py":
                    continue
                path = os.path.join(folder, name)
                with open(path, encoding="utf-8") as file:
                    tree = ast.parse(file.read())
                for node in ast.walk(tree):
                    if self.has_layout(node):
                        wrong.append("%s:%d" % (path, node.lineno))
        self.assertEqual(wrong, [])

    @staticmethod
    def has_layout(node):
        if isinstance(node, ast.Import):
            return any(one.name == "struct" for one in node.names)
        if isinstance(node, ast.ImportFrom):
            return node.module == "struct"
        casts = isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "cast"
        return casts and any(isinstance(value, ast.Constant) and value.value == "Q" for value in node.args)

    def test_a_template_refuses_a_supervisor_of_another_protocol(self):
        settings = dict(vectors("template.json")[0]["value"], protocol=2)
        code = "import sys; sys.path.insert(0, sys.argv[2]); from _pool import template; template.run()"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs, tempfile.TemporaryFile() as errors:
            settings["control"] = theirs.fileno()
            command = [sys.executable, "-c", code, json.dumps(settings), PACKAGE]
            status = subprocess.call(command, pass_fds=[theirs.fileno()], stderr=errors)
            name, error = pool.decode(ours.recv(1 << 16))
        self.assertEqual((status, name, error["type"]), (1, "failed", "RuntimeError"))
        expected = "the supervisor speaks protocol 2, and the Python package protocol 1. hint: install"
        self.assertTrue(error["message"].startswith(expected), error)


if __name__ == "__main__":
    unittest.main()
