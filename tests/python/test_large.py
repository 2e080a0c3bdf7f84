"""Tests of `supervise.Executor` with arguments and results as large as the cap, and with workers that cannot start."""
import operator
import os
import signal
import unittest
from concurrent.futures.process import BrokenProcessPool
from unittest import mock

import helpers_for_tasks as tasks
from supervise import Executor, MemoryCapExceeded, _errors

LONG = 60
MEGABYTE = 1 << 20
#: Without a control group `RLIMIT_DATA` enforces the cap, and Python raises MemoryError.
OVER_CAP = MemoryError


class Large(unittest.TestCase):
    def check_fails_at_the_cap(self, *call, **options):
        """Checks that the call fails at the cap of its worker, and that other tasks succeed."""
        with Executor(2, cap="100M", **options) as pool:
            future = pool.submit(*call)
            others = [pool.submit(tasks.square, number) for number in range(50)]
            with self.assertRaises(OVER_CAP) as caught:
                future.result(LONG)
            self.assertEqual([other.result(LONG) for other in others], [number**2 for number in range(50)])
        if isinstance(caught.exception, MemoryCapExceeded):
            self.assertEqual(caught.exception.attempts, 2)
            return str(caught.exception)
        return None

    def test_an_argument_over_the_cap_fails_the_task(self):
        message = self.check_fails_at_the_cap(len, b"x" * (150 * MEGABYTE))
        if message is not None:
            self.assertIn("reached its cap of 100M while it received the task's 150M", message)

    def test_many_arguments_together_over_the_cap_fail_the_task(self):
        # Large enough for `RLIMIT_DATA` as well, which leaves more room than the limit of a control group.
        self.check_fails_at_the_cap(len, [os.urandom(MEGABYTE) for _ in range(150)])

    def test_a_closure_over_the_cap_fails_the_task(self):
        data = b"x" * (150 * MEGABYTE)
        self.check_fails_at_the_cap(lambda: len(data))

    def test_a_result_over_the_cap_fails_the_task(self):
        self.check_fails_at_the_cap(operator.mul, b"x", 150 * MEGABYTE)

    def test_an_argument_and_a_result_below_the_cap_are_complete(self):
        data = os.urandom(40 * MEGABYTE)
        with Executor(2, cap="100M") as pool:
            self.assertEqual(pool.submit(len, data).result(LONG), len(data))
            self.assertEqual(pool.submit(operator.mul, b"x", len(data)).result(LONG), b"x" * len(data))

    def test_arguments_of_an_initializer_over_the_cap_break_the_pool(self):
        with Executor(2, cap="100M", initializer=tasks.capture, initargs=(b"x" * (150 * MEGABYTE),)) as pool:
            with self.assertRaises(BrokenProcessPool) as caught:
                pool.submit(tasks.square, 2).result(LONG)
        self.assertRegex(str(caught.exception), "reached its memory cap of 100M|MemoryError")


class Starting(unittest.TestCase):
    def test_an_initializer_that_ends_its_worker_breaks_the_pool_with_the_reason(self):
        for initializer, argument, reason in (
            (os._exit, 3, "it exited with status 3"),
            (tasks.raise_signal, signal.SIGSEGV, "signal SEGV"),
            (tasks.hold, 300, "it reached its memory cap of 100M|MemoryError"),
        ):
            with self.subTest(reason), Executor(1, cap="100M", initializer=initializer, initargs=(argument,)) as pool:
                with self.assertRaises(BrokenProcessPool) as caught:
                    pool.submit(tasks.square, 2).result(LONG)
                self.assertRegex(str(caught.exception), "a worker could not start: .*({})".format(reason))

    def test_a_package_of_another_version_breaks_the_pool_with_the_reason(self):
        with mock.patch("supervise._pool.protocol.VERSION", 99):
            with self.assertLogs("concurrent.futures", "CRITICAL"), Executor(1) as pool:
                with self.assertRaises(BrokenProcessPool) as caught:
                    pool.submit(tasks.square, 2).result(LONG)
        message = str(caught.exception)
        self.assertIn("the Python package speaks protocol 99, and this `supervise` protocol 1. hint: ", message)

    def test_a_failed_start_without_a_valid_reason_has_a_general_message(self):
        for words in (b"", b"\xff", b"3", b"[]"):
            message, traceback = _errors.of_start(words)
            self.assertIn("a worker could not start", message)
            self.assertEqual(traceback, "")
        self.assertIn("no licence", _errors.of_start(b'{"type":"E","message":"no licence"}')[0])


if __name__ == "__main__":
    unittest.main()
