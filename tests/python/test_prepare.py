"""What a report needs is prepared in short steps, also while clients keep their connections open.

    python test_prepare.py PACKAGE        PACKAGE is the folder that holds the package of the agent
"""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

PACKAGE = sys.argv.pop(1)
sys.path.insert(0, PACKAGE)

from _agent import prepare, serving, state  # noqa: E402


class Steps(unittest.TestCase):
    def setUp(self):
        state._current = None
        self.addCleanup(setattr, serving, "is_busy", serving.is_busy)
        self.addCleanup(setattr, serving, "has_connections", serving.has_connections)
        serving.has_connections = lambda: True

    def test_the_base_is_taken_while_connections_are_open_and_no_request_is_in_progress(self):
        kept = [[number] for number in range(25000)]
        steps = 1
        while not prepare.step()["taken"]:
            steps += 1
            self.assertLess(steps, 200)
        base = state.of_process().base
        self.assertEqual(base.lengths[id(kept)], 25000)
        self.assertGreaterEqual(base.types[id(list)], 25000)
        # The objects are read 10,000 at a time, and their types and their lengths in different steps.
        self.assertGreater(steps, 6)

    def test_a_busy_worker_takes_no_base(self):
        serving.is_busy = lambda: True
        for _ in range(100):
            self.assertFalse(prepare.step()["taken"])
        self.assertIsNone(state.of_process().partial)


class Imports(unittest.TestCase):
    def test_a_master_imports_what_a_report_needs_without_ctypes(self):
        program = (
            "import sys; sys.path.insert(0, %r)\n"
            "from _agent import prepare\n"
            "prepare.import_all(None)\n"
            "assert 'ctypes' not in sys.modules\n"
            "before = set(sys.modules)\n"
            "from _agent import report, windows, lines\n"
            "assert set(sys.modules) == before, set(sys.modules) - before\n"
            "assert prepare.import_next() and 'ctypes' in sys.modules\n"
            "assert not prepare.import_next()\n" % PACKAGE
        )
        subprocess.run([sys.executable, "-c", program], check=True)


class Bytecode(unittest.TestCase):
    def test_modules_are_compiled_once_although_python_should_write_no_bytecode(self):
        with tempfile.TemporaryDirectory() as home:
            package = home + "/_supervise_agent"
            shutil.copytree(PACKAGE + "/_agent", package, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(package + "/sitecustomize.py", home)
            open(home + "/stacks", "w").close()
            environ = dict(os.environ, PYTHONPATH=home, SUPERVISE_AGENT=home, PYTHONDONTWRITEBYTECODE="1")
            words = [sys.executable, "-v", "-c", "import _supervise_agent.report"]
            read = []
            for _ in range(2):
                ended = subprocess.run(words, env=environ, stderr=subprocess.PIPE, text=True, check=True)
                read.append("code object from '%s/__pycache__/report." % package in ended.stderr)
            self.assertEqual(len(glob.glob(package + "/__pycache__/report.*.pyc")), 1)
            self.assertEqual(glob.glob(home + "/__pycache__/*"), [])
            self.assertTrue(read[1], ended.stderr[-2000:])


if __name__ == "__main__":
    unittest.main()
