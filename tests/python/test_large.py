"""Tests of `supervise.Executor`: arguments and results about as large as the cap, and workers that cannot start."""
import operator
import os
import signal
import unittest
from concurrent.futures.process import BrokenProcessPool

import helpers_for_tasks as tasks
from supervise import Executor, MemoryCapExceeded, _errors

LONG = 60
MEGABYTE = 1 << 20
#: Without a control group `RLIMIT_DATA` holds the cap, and Python raises MemoryError.
OVER_CAP = MemoryError


class Large(unittest.TestCase):
    def ends_at_the_cap(self, *call, **options):
        """Checks that the call ends at the cap of its worker, and that other tasks go on."""
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

    def test_an_argument_over_the_cap(self):
        message = self.ends_at_the_cap(len, b"x" * (150 * MEGABYTE))
        if message is not None:
            self.assertIn("reached its cap of 100M while it received the task's 150M", message)

    def test_many_arguments_that_are_over_the_cap_together(self):
        # Large enough for `RLIMIT_DATA`, too, which leaves more room than the limit of a control group.
        self.ends_at_the_cap(len, [os.urandom(MEGABYTE) for _ in range(150)])

    def test_a_closure_over_the_cap(self):
        data = b"x" * (150 * MEGABYTE)
        self.ends_at_the_cap(lambda: len(data))

    def test_a_result_over_the_cap(self):
        self.ends_at_the_cap(operator.mul, b"x", 150 * MEGABYTE)

    def test_an_argument_and_a_result_below_the_cap_arrive_whole(self):
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
        for initializer, argument, said in (
            (os._exit, 3, "it exited with status 3"),
            (tasks.raise_signal, signal.SIGSEGV, "signal SEGV"),
            (tasks.hold, 300, "it reached its memory cap of 100M|MemoryError"),
        ):
            with self.subTest(said), Executor(1, cap="100M", initializer=initializer, initargs=(argument,)) as pool:
                with self.assertRaises(BrokenProcessPool) as caught:
                    pool.submit(tasks.square, 2).result(LONG)
                self.assertRegex(str(caught.exception), "a worker could not start: .*({})".format(said))

    def test_a_failed_start_without_a_valid_reason(self):
        for words in (b"", b"\xff", b"3", b"[]"):
            message, traceback = _errors.of_start(words)
            self.assertIn("a worker could not start", message)
            self.assertEqual(traceback, "")
        self.assertIn("no licence", _errors.of_start(b'{"type":"E","message":"no licence"}')[0])


if __name__ == "__main__":
    unittest.main()
