"""Tests of `supervise.Executor` against the installed wheel: `python -m unittest test_executor`."""
import concurrent.futures
import functools
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest
import weakref
from concurrent.futures.process import BrokenProcessPool

import helpers_for_tasks as tasks
from supervise import Executor, MemoryCapExceeded, TaskTimeout, WorkerDied, __version__, _errors, _pickles

HERE = os.path.dirname(os.path.abspath(__file__))
LONG = 60


def until(condition, what="it"):
    end = time.monotonic() + LONG
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("not within {} s: {}".format(LONG, what))
        time.sleep(0.005)


def alive(pid):
    try:
        with open("/proc/{}/stat".format(pid)) as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def catch_interrupts():
    """A process started by a shell in the background ignores SIGINT, and so do its children: restore the default."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def executor(self, *args, **kwargs):
        made = Executor(*args, **kwargs)
        self.addCleanup(made.shutdown, cancel_futures=True)
        return made

    def release(self, name):
        open(self.path(name), "w").close()

    def run_python(self, code, *options, stdin=None):
        done = subprocess.run(
            [sys.executable, *options] + ([] if stdin else ["-c", textwrap.dedent(code)]),
            input=textwrap.dedent(stdin) if stdin else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            timeout=LONG,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])),
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout


class Calls(Case):
    """Tests that share a pool, because they leave it unchanged."""

    @classmethod
    def setUpClass(cls):
        cls.pool = Executor(2)

    @classmethod
    def tearDownClass(cls):
        cls.pool.shutdown()

    def test_the_class_is_an_executor(self):
        self.assertIsInstance(self.pool, concurrent.futures.Executor)
        self.assertEqual(__version__, "0.1.0")

    def test_submit_passes_arguments_and_returns_the_result(self):
        self.assertEqual(self.pool.submit(tasks.square, 7).result(LONG), 49)
        got = self.pool.submit(tasks.capture, 1, fn=2, self=3).result(LONG)
        self.assertEqual(got, ((1,), {"fn": 2, "self": 3}))
        with self.assertRaises(TypeError):
            self.pool.submit()

    def test_a_task_runs_in_another_process(self):
        self.assertNotEqual(self.pool.submit(os.getpid).result(LONG), os.getpid())

    def test_map_returns_the_results_in_order(self):
        want = [x * x for x in range(100)]
        for size in (1, 3, 100, 1000):
            self.assertEqual(list(self.pool.map(tasks.square, range(100), chunksize=size, timeout=LONG)), want)
        self.assertEqual(list(self.pool.map(pow, range(9), range(9), chunksize=2)), [x**x for x in range(9)])
        self.assertEqual(list(self.pool.map(tasks.square, [], chunksize=5)), [])
        self.assertRaises(ValueError, self.pool.map, tasks.square, [1], chunksize=0)

    def test_map_raises_at_the_failed_item(self):
        got = self.pool.map(divmod, [1, 1, 1], [2, 0, 5])
        self.assertEqual(next(got), (0, 1))
        self.assertRaises(ZeroDivisionError, next, got)

    def test_many_futures_keep_their_results(self):
        futures = [self.pool.submit(tasks.square, x) for x in range(1000)]
        self.assertEqual([future.result(LONG) for future in futures], [x * x for x in range(1000)])

    def test_many_threads_can_submit_at_the_same_time(self):
        got, ready = {}, threading.Barrier(8)

        def some(number):
            ready.wait()
            futures = [self.pool.submit(tasks.capture, number, x) for x in range(200)]
            got[number] = [future.result(LONG)[0] for future in futures]

        threads = [threading.Thread(target=some, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        self.assertEqual(got, {number: [(number, x) for x in range(200)] for number in range(8)})

    def test_large_arguments_and_results_are_complete(self):
        data = os.urandom(5 << 20)
        futures = [self.pool.submit(tasks.capture, data) for _ in range(6)]
        for future in futures:
            self.assertEqual(future.result(LONG)[0][0], data)

    def test_large_and_small_arguments_can_be_mixed(self):
        sizes = [(x * 7919) % 300000 for x in range(300)]
        futures = [self.pool.submit(len, bytes(size)) for size in sizes]
        self.assertEqual([future.result(LONG) for future in futures], sizes)

    def test_an_exception_has_the_traceback_of_the_worker(self):
        error = self.pool.submit(tasks.fail, "here").exception(LONG)
        self.assertIs(type(error), KeyError)
        self.assertEqual(error.args, ("here",))
        self.assertIn("the line that fails", str(error.__cause__))

    def test_an_exception_that_cannot_be_unpickled_is_described(self):
        error = self.pool.submit(tasks.fail_stubbornly).exception(LONG)
        self.assertIsInstance(error, RuntimeError)
        self.assertIn("Stubborn", str(error))
        self.assertIn("fail_stubbornly", str(error.__cause__))

    def test_an_argument_or_result_that_cannot_be_pickled_fails_only_its_task(self):
        for bad in (threading.Lock(), tasks.RaisesAtPickle()):
            with self.assertRaises((TypeError, ValueError)):
                self.pool.submit(id, bad).result(LONG)
        with self.assertRaises(TypeError):
            self.pool.submit(tasks.lock_as_result).result(LONG)
        self.assertIsInstance(self.pool.submit(id, tasks.RaisesAtLoad()).exception(LONG), KeyError)
        self.assertIsInstance(self.pool.submit(tasks.return_raises_at_load).exception(LONG), KeyError)
        self.assertEqual(self.pool.submit(tasks.square, 3).result(LONG), 9)

    def test_a_lambda_can_be_submitted(self):
        offset = 5
        self.assertEqual(self.pool.submit(lambda x: x + offset, 2).result(LONG), 7)
        self.assertEqual(list(self.pool.map(lambda x: -x, range(5), chunksize=2)), [0, -1, -2, -3, -4])

    def test_a_closure_has_its_values_at_the_time_of_submit(self):
        value = 1

        def look():
            return value

        self.assertEqual(self.pool.submit(look).result(LONG), 1)
        value = 2
        self.assertEqual(self.pool.submit(look).result(LONG), 2)

    def test_result_raises_a_timeout_and_can_be_called_again(self):
        future = self.pool.submit(tasks.wait_for, self.path("go"))
        self.assertRaises(concurrent.futures.TimeoutError, future.result, 0.01)
        self.release("go")
        self.assertEqual(future.result(LONG), self.path("go"))

    def test_as_completed_and_callbacks_get_all_futures(self):
        called = []
        futures = [self.pool.submit(tasks.square, x) for x in range(20)]
        for future in futures:
            future.add_done_callback(lambda done: called.append(done.result()))
        got = [done.result() for done in concurrent.futures.as_completed(futures, LONG)]
        self.assertEqual(sorted(got), [x * x for x in range(20)])
        until(lambda: len(called) == 20)

    def test_a_callback_may_submit(self):
        second = []
        first = self.pool.submit(tasks.square, 2)
        first.add_done_callback(lambda done: second.append(self.pool.submit(tasks.square, done.result())))
        until(lambda: second)
        self.assertEqual(second[0].result(LONG), 16)

    def test_arguments_are_not_kept_after_the_task(self):
        class Big:
            def __reduce__(self):
                return int, ()

        big = Big()
        gone = weakref.ref(big)
        self.pool.submit(id, big).result(LONG)
        del big
        until(lambda: gc.collect() is not None and gone() is None)


class Cancelling(Case):
    def test_a_waiting_task_can_be_cancelled(self):
        pool = self.executor(1)
        first = pool.submit(tasks.begin_and_wait_for, self.path("begun"), self.path("go"))
        until(lambda: os.path.exists(self.path("begun")))
        rest = [pool.submit(tasks.square, x) for x in range(200)]
        self.assertFalse(first.cancel())
        self.assertTrue(rest[-1].cancel())
        self.release("go")
        self.assertEqual([future.result(LONG) for future in rest[:-1]], [x * x for x in range(199)])
        self.assertTrue(rest[-1].cancelled())
        pool.shutdown()

    def test_closing_the_results_of_map_cancels_waiting_tasks(self):
        pool = self.executor(1)
        names = [self.path("first")] + [self.path("rest")] * 100
        results = pool.map(tasks.begin_and_wait_for, [self.path("begun")] * 101, names)
        until(lambda: os.path.exists(self.path("begun")))
        self.release("first")
        self.assertEqual(next(results), self.path("first"))
        with pool._client._lock:
            waiting = [item[0] for item in pool._client._waiting]
        results.close()
        self.assertGreater(len(waiting), 90)
        self.assertTrue(all(future.cancelled() for future in waiting))
        self.release("rest")

    def test_a_timeout_of_map_cancels_waiting_tasks(self):
        pool = self.executor(1)
        results = pool.map(tasks.wait_for, [self.path("go")] * 100, timeout=0.05)
        self.assertRaises(concurrent.futures.TimeoutError, next, results)
        with pool._client._lock:
            waiting = [item[0] for item in pool._client._waiting]
        self.assertGreater(len(waiting), 90)
        self.assertTrue(all(future.cancelled() for future in waiting))
        self.release("go")

    def test_shutdown_cancels_waiting_tasks(self):
        pool = self.executor(1)
        first = pool.submit(tasks.begin_and_wait_for, self.path("begun"), self.path("go"))
        until(lambda: os.path.exists(self.path("begun")))
        rest = [pool.submit(tasks.square, x) for x in range(500)]
        pool.shutdown(wait=False, cancel_futures=True)
        self.release("go")
        self.assertEqual(first.result(LONG), self.path("go"))
        pool.shutdown()
        self.assertTrue(all(future.done() for future in rest))
        self.assertGreater(sum(future.cancelled() for future in rest), 300)
        self.assertTrue(rest[-1].cancelled())

    def test_shutdown_cancels_a_task_that_the_pool_has_not_begun(self):
        pool = self.executor(1)
        first = pool.submit(tasks.begin_and_wait_for, self.path("begun"), self.path("go"))
        until(lambda: os.path.exists(self.path("begun")))
        # The pool has received this task, and has not begun it.
        second = pool.submit(tasks.begin_and_wait_for, self.path("later"), self.path("go"))
        self.assertTrue(second.running())
        called = []
        second.add_done_callback(called.append)
        pool.shutdown(wait=False, cancel_futures=True)
        pool.shutdown(wait=False, cancel_futures=True)
        self.release("go")
        self.assertEqual(first.result(LONG), self.path("go"))
        pool.shutdown()
        self.assertTrue(second.cancelled())
        self.assertEqual(called, [second])
        self.assertRaises(concurrent.futures.CancelledError, second.result)
        self.assertFalse(os.path.exists(self.path("later")))


class Ending(Case):
    def test_an_invalid_size_is_refused_before_anything_starts(self):
        for name in ("ceiling", "cap", "budget"):
            for value, message in (
                (100, 'did you mean "100M"?'),
                ("50", 'did you mean "50M"?'),
                (0, "minimum of a memory limit is 1M"),
                ("lots", "is not a size"),
                ("-5M", "is not a size"),
                ("0.00001%", "below the minimum of 1M"),
                (True, "is not a size"),
            ):
                with self.assertRaises(ValueError) as raised:
                    Executor(1, **{name: value})
                self.assertIn("{}={!r}".format(name, value), str(raised.exception))
                self.assertIn(message, str(raised.exception))

    def test_nothing_starts_before_the_first_task(self):
        pool = Executor(2)
        self.assertIsNone(pool._client)
        pool.shutdown()
        self.assertRaises(RuntimeError, pool.submit, tasks.square, 1)

    def test_shutdown_completes_submitted_tasks(self):
        with Executor(2) as pool:
            futures = [pool.submit(tasks.square, x) for x in range(500)]
        self.assertTrue(all(future.done() for future in futures))
        self.assertEqual([future.result() for future in futures], [x * x for x in range(500)])
        with self.assertRaisesRegex(RuntimeError, "after shutdown"):
            pool.submit(tasks.square, 1)
        pool.shutdown()

    def test_shutdown_without_wait_completes_submitted_tasks(self):
        pool = Executor(2)
        futures = [pool.submit(tasks.square, x) for x in range(200)]
        pool.shutdown(wait=False)
        self.assertRaises(RuntimeError, pool.submit, tasks.square, 1)
        self.assertEqual([future.result(LONG) for future in futures], [x * x for x in range(200)])
        pool._client.join()
        self.assertEqual(pool._client._process.returncode, 0)

    def test_a_garbage_collected_executor_ends_its_pool(self):
        pool = Executor(1)
        future = pool.submit(os.getpid)
        client = pool._client
        del pool
        gc.collect()
        worker = future.result(LONG)
        client.join()
        until(lambda: not alive(worker))

    def check_killed_client(self, before):
        script = "import helpers_for_tasks as t, supervise, sys\np = supervise.Executor(1)\n" + before
        script += "p.submit(t.say_pid_and_hang, sys.argv[1]).result()"
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")]))
        client = subprocess.Popen([sys.executable, "-c", script, self.path("pid")], env=environment)
        until(lambda: os.path.exists(self.path("pid")))
        client.kill()
        client.wait()
        with open(self.path("pid")) as file:
            worker = int(file.read())
        until(lambda: not alive(worker), "the end of the worker")

    def test_a_pool_ends_when_its_client_is_killed(self):
        self.check_killed_client("")

    def test_a_pool_with_full_queues_ends_when_its_client_is_killed(self):
        # Short tasks make the credit large, and the hanging tasks behind them use all of it.
        fill = "short = [p.submit(t.square, x) for x in range(3000)]\n"
        fill += "futures = [p.submit(t.say_pid_and_hang, sys.argv[1]) for _ in range(2000)]\n"
        self.check_killed_client(fill)

    def test_the_exit_of_the_interpreter_waits_for_tasks(self):
        path = self.path("done")
        self.run_python(
            """
            import supervise, time
            def late():
                time.sleep(0.3)
                open({!r}, "w").close()
            pool = supervise.Executor(2)
            pool.submit(late)
            """.format(path)
        )
        self.assertTrue(os.path.exists(path))

    def test_submit_fails_at_the_exit_of_the_interpreter(self):
        out = self.run_python(
            """
            import atexit
            @atexit.register
            def last():
                try:
                    pool.submit(id, None)
                except RuntimeError as error:
                    print(error)
            import supervise
            pool = supervise.Executor(1)
            pool.submit(int).result()
            """
        )
        self.assertIn("cannot schedule new futures", out)

    def test_output_of_a_task_that_dies_is_forwarded(self):
        code = """
            import helpers_for_tasks as t, supervise, sys
            with supervise.Executor(1, cap="100M", max_tasks_per_child=1) as pool:
                pool.submit(t.say, "one", "two").result()
                for end in ("exits", "is killed", "reaches its cap"):
                    pool.submit(t.say, "before", end, end).exception()
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            timeout=LONG,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])),
        )
        expected = ["[task 1] one", "[task 1] two"]
        for task, end in enumerate(("exits", "is killed", "reaches its cap"), 2):
            expected += ["[task %d] before" % task, "[task %d] %s" % (task, end)]
        lines = [line for line in done.stderr.splitlines() if not line.startswith("supervise: ")]
        # The task that reached its cap may have run twice.
        self.assertEqual(list(dict.fromkeys(lines)), expected)
        self.assertEqual(done.stdout, "")

    def test_ctrl_c_finishes_the_running_task_and_cancels_the_others(self):
        code = """
            import supervise, sys, helpers_for_tasks as t
            try:
                with supervise.Executor(1) as pool:
                    first = pool.submit(t.begin_and_wait_for, sys.argv[1], sys.argv[2])
                    rest = [pool.submit(t.square, x) for x in range(300)]
                    open(sys.argv[3], "w").close()
                    first.result()
            except KeyboardInterrupt:
                print(first.exception(), rest[-1].cancelled())
        """
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")]))
        client = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *map(self.path, ("begun", "go", "all"))],
            env=environment,
            stdout=subprocess.PIPE,
            universal_newlines=True,
            start_new_session=True,
            preexec_fn=catch_interrupts,
        )
        until(lambda: os.path.exists(self.path("begun")) and os.path.exists(self.path("all")))
        os.killpg(client.pid, signal.SIGINT)
        self.release("go")
        out, _ = client.communicate(timeout=LONG)
        self.assertEqual(out.split(), ["None", "True"])

    def interrupted(self, code):
        """Runs the code, interrupts it once it has created `all` and a task has begun, and returns its output."""
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")]))
        client = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *map(self.path, ("begun", "go", "all", "later"))],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=open(self.path("stderr"), "w"),
            universal_newlines=True,
            start_new_session=True,
            preexec_fn=catch_interrupts,
        )
        self.addCleanup(client.kill)
        until(lambda: os.path.exists(self.path("begun")) and os.path.exists(self.path("all")))
        os.killpg(client.pid, signal.SIGINT)
        message = "supervise: finishing the running tasks: 1; press Ctrl-C again to stop now"
        until(lambda: message in open(self.path("stderr")).read())
        self.release("go")
        out, _ = client.communicate(timeout=LONG)
        return out

    def test_no_task_begins_after_ctrl_c(self):
        # The worker has the first task, the pool has received the second, and the others wait in the client.
        out = self.interrupted(
            """
            import supervise, sys, helpers_for_tasks as t
            try:
                with supervise.Executor(1) as pool:
                    first = pool.submit(t.begin_and_wait_for, sys.argv[1], sys.argv[2])
                    rest = [pool.submit(t.begin_and_wait_for, sys.argv[4], sys.argv[2]) for _ in range(5)]
                    open(sys.argv[3], "w").close()
                    first.result()
            except KeyboardInterrupt:
                print(first.exception(), [future.cancelled() for future in rest])
            """
        )
        self.assertEqual(out.split(None, 1)[1].strip(), str([True] * 5))
        self.assertFalse(os.path.exists(self.path("later")))

    def test_no_task_begins_after_ctrl_c_that_ends_the_program(self):
        self.interrupted(
            """
            import supervise, sys, helpers_for_tasks as t
            pool = supervise.Executor(1)
            first = pool.submit(t.begin_and_wait_for, sys.argv[1], sys.argv[2])
            rest = [pool.submit(t.begin_and_wait_for, sys.argv[4], sys.argv[2]) for _ in range(5)]
            open(sys.argv[3], "w").close()
            first.result()
            """
        )
        self.assertFalse(os.path.exists(self.path("later")))


class WorkerFailures(Case):
    """Workers that die or hang: the pool continues."""

    def check_still_works(self, pool):
        self.assertEqual(pool.submit(tasks.square, 4).result(LONG), 16)

    def test_a_worker_that_exits_fails_its_task(self):
        pool = self.executor(2)
        error = pool.submit(tasks.leave, 3).exception(LONG)
        self.assertIs(type(error), WorkerDied)
        self.assertIsInstance(error, RuntimeError)
        self.assertNotIsInstance(error, concurrent.futures.BrokenExecutor)
        self.assertEqual(error.cause, "exit:3")
        self.check_still_works(pool)

    def test_a_worker_that_kills_itself_fails_its_task(self):
        pool = self.executor(2)
        error = pool.submit(tasks.kill_self).exception(LONG)
        self.assertIs(type(error), WorkerDied)
        self.assertEqual(error.cause, "signal:KILL")
        self.check_still_works(pool)

    def test_a_worker_killed_from_outside_fails_only_its_own_task(self):
        pool = self.executor(2)
        hangs = pool.submit(tasks.say_pid_and_hang, self.path("pid"))
        other = pool.submit(tasks.wait_for, self.path("go"))
        until(lambda: os.path.exists(self.path("pid")))
        with open(self.path("pid")) as file:
            os.kill(int(file.read()), signal.SIGKILL)
        self.assertIs(type(hangs.exception(LONG)), WorkerDied)
        self.assertFalse(other.done())
        self.release("go")
        self.assertEqual(other.result(LONG), self.path("go"))
        self.check_still_works(pool)

    def test_a_task_over_the_cap_fails_alone(self):
        pool = self.executor(2, cap="200M")
        beside = [pool.submit(tasks.square, x) for x in range(20)]
        error = pool.submit(tasks.hold, 600).exception(LONG)
        self.assertIs(type(error), MemoryCapExceeded)
        self.assertIsInstance(error, MemoryError)
        self.assertEqual(error.attempts, 2)
        self.assertGreater(error.peak, 50 << 20)
        self.assertEqual([future.result(LONG) for future in beside], [x * x for x in range(20)])
        self.assertEqual(pool.submit(tasks.hold, 10).result(LONG), 10 << 20)

    def test_a_task_over_its_timeout_fails(self):
        pool = self.executor(1, task_timeout=0.5)
        error = pool.submit(tasks.wait_for, "/never").exception(LONG)
        self.assertIs(type(error), TaskTimeout)
        self.assertIsInstance(error, TimeoutError)
        self.check_still_works(pool)

    def test_a_worker_is_replaced_after_max_tasks_per_child(self):
        pool = self.executor(1, max_tasks_per_child=2)
        workers = [pool.submit(os.getpid).result(LONG) for _ in range(6)]
        self.assertEqual(len(set(workers)), 3)

    def test_errors_can_be_pickled(self):
        error = MemoryCapExceeded("too much", "cap", 2, 300)
        again = pickle.loads(pickle.dumps(error))
        self.assertEqual((str(again), again.cause, again.attempts, again.peak), ("too much", "cap", 2, 300))
        for kind in (TaskTimeout, WorkerDied):
            self.assertEqual(str(pickle.loads(pickle.dumps(kind("gone", "x", 1)))), "gone")

    def test_a_killed_pool_breaks_its_executor(self):
        pool = self.executor(1)
        hangs = pool.submit(tasks.say_pid_and_hang, self.path("pid"))
        rest = [pool.submit(tasks.square, x) for x in range(100)]
        until(lambda: os.path.exists(self.path("pid")))
        pool._client._process.kill()
        for future in [hangs, *rest]:
            self.assertIsInstance(future.exception(LONG), BrokenProcessPool)
        self.assertRaises(BrokenProcessPool, pool.submit, tasks.square, 1)


class Starting(Case):
    def test_the_initializer_runs_in_every_worker(self):
        for start in ("template", "fresh"):
            with Executor(2, initializer=tasks.set_flag, initargs=("set",), start=start) as pool:
                self.assertEqual(set(pool.map(lambda _: tasks.get_flag(), range(8))), {"set"})

    def test_proxies_of_a_manager_work_in_workers(self):
        with multiprocessing.get_context("spawn").Manager() as manager:
            events, names = manager.Queue(), manager.dict()
            with Executor(2, initializer=tasks.announce, initargs=(events,)) as pool:
                got = list(pool.map(tasks.put, [names] * 9, range(9), chunksize=2))
                self.assertEqual(got, list(range(9)))
                pool.submit(lambda: names.update(here=1)).result(LONG)
            self.assertEqual(sorted(map(str, names.keys())), [*map(str, range(9)), "here"])
            self.assertIn("started", events.get(timeout=LONG))

    def test_a_failing_initializer_breaks_the_pool(self):
        pool = self.executor(2, initializer=tasks.fail_at_start)
        try:
            futures = [pool.submit(tasks.square, x) for x in range(50)]
        except BrokenProcessPool:
            futures = []
        for future in futures:
            error = future.exception(LONG)
            self.assertIsInstance(error, BrokenProcessPool)
            self.assertIn("no licence for this machine", str(error))
            self.assertIn("fail_at_start", str(error.__cause__))
        with self.assertRaisesRegex(BrokenProcessPool, "no licence"):
            pool.submit(tasks.square, 1)

    def test_a_failing_preload_breaks_the_pool(self):
        pool = self.executor(1, preload=["no_such_module_anywhere"])
        error = pool.submit(tasks.square, 1).exception(LONG)
        self.assertIsInstance(error, BrokenProcessPool)
        self.assertIn("no_such_module_anywhere", str(error))

    def test_preloaded_modules_are_imported_in_workers(self):
        with Executor(1, preload=["helpers_for_tasks", "wave"]) as pool:
            self.assertTrue(pool.submit(eval, "'wave' in __import__('sys').modules").result(LONG))

    def test_invalid_arguments_are_refused(self):
        self.assertRaises(ValueError, Executor, 0)
        self.assertRaises(ValueError, Executor, -1)
        self.assertRaises(ValueError, Executor, max_tasks_per_child=0)
        self.assertRaises(TypeError, Executor, max_tasks_per_child="3")
        self.assertRaises(TypeError, Executor, initializer=3)
        self.assertRaises(ValueError, Executor, start="spawn")
        self.assertRaises(ValueError, Executor, task_timeout=0)
        self.assertRaises(TypeError, Executor, preload="json")

    def test_a_missing_binary_is_named(self):
        pool, before = Executor(1), os.environ.get("SUPERVISE_BINARY")
        os.environ["SUPERVISE_BINARY"] = "/no/such/binary"
        try:
            with self.assertRaisesRegex(FileNotFoundError, "/no/such/binary"):
                pool.submit(int)
        finally:
            del os.environ["SUPERVISE_BINARY"]
            if before is not None:
                os.environ["SUPERVISE_BINARY"] = before


MAIN = """
import supervise, sys

class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return type(other) is Point and other.x == self.x

class Odd(Exception):
    pass

model = None
def load(value):
    global model
    model = value
def use(): return model
def helper(x): return x + 1
def call(x): return helper(x)
def move(point): return Point(point.x + 1)
def odd(): raise Odd("odd")

with supervise.Executor(2, initializer=load, initargs=("loaded",)) as pool:
    assert pool.submit(call, 1).result() == 2
    assert list(pool.map(call, range(10), chunksize=3)) == list(range(1, 11))
    assert pool.submit(move, Point(1)).result() == Point(2)
    assert set(pool.map(lambda _: use(), range(20))) == {"loaded"}
    assert pool.submit(use).result() == "loaded"
    assert type(pool.submit(odd).exception()) is Odd
    def helper(x): return x + 100
    assert pool.submit(call, 1).result() == 101
print("fine")
"""


class FromMain(Case):
    def test_functions_of_a_script_without_a_main_guard_can_be_submitted(self):
        with open(self.path("script.py"), "w") as file:
            file.write(MAIN)
        self.assertEqual(self.run_python("", self.path("script.py"), stdin="\n").strip(), "fine")

    def test_functions_of_python_c_can_be_submitted(self):
        self.assertEqual(self.run_python(MAIN).strip(), "fine")

    def test_functions_of_a_script_on_standard_input_can_be_submitted(self):
        self.assertEqual(self.run_python("", "-", stdin=MAIN).strip(), "fine")

    def test_functions_of_a_module_in_the_directory_of_the_script_can_be_submitted(self):
        with open(self.path("beside.py"), "w") as file:
            file.write("def f(x):\n    return x * 10\n")
        with open(self.path("script.py"), "w") as file:
            file.write("import supervise, beside\n")
            file.write("with supervise.Executor(1) as p: print(p.submit(beside.f, 4).result())\n")
        self.assertEqual(self.run_python("", self.path("script.py"), stdin="\n").strip(), "40")

    def test_a_forked_child_cannot_use_the_executor_of_its_parent(self):
        out = self.run_python(
            """
            import os, supervise, sys
            pool = supervise.Executor(1)
            assert pool.submit(int, "3").result() == 3
            child = os.fork()
            if child == 0:
                try:
                    pool.submit(int)
                except RuntimeError as error:
                    pool.shutdown()
                    print(error, flush=True)
                    with supervise.Executor(1) as own:
                        print(own.submit(int, "5").result(), flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            print(pool.submit(int, "4").result())
            """
        )
        self.assertIn("belongs to the parent", out)
        self.assertEqual(out.split()[-2:], ["5", "4"])


class Pickles(unittest.TestCase):
    def test_an_importable_function_is_pickled_by_reference(self):
        for _ in range(2):
            body, tail = _pickles.dumps_task(tasks.square, (1,), {})
            self.assertEqual(body, pickle.dumps(((1,), {}), 5))
            self.assertIs(pickle.loads(tail), tasks.square)
            for kind in (bytes, bytearray):
                self.assertEqual(_pickles.load_task(kind(body + tail)), (tasks.square, (1,), {}))

    def test_another_callable_is_pickled_with_its_arguments(self):
        shared = []
        for function in (shared.append, len, lambda x: x, tasks.RaisesAtPickle, functools.partial(pow, 2)):
            loaded, args, kwargs = _pickles.load_task(b"".join(_pickles.dumps_task(function, (shared,), {"a": 1})))
            self.assertEqual((args, kwargs), ((shared,), {"a": 1}))
            if function == shared.append:
                self.assertIs(loaded.__self__, args[0])

    def test_a_function_whose_name_was_rebound_is_pickled_by_value(self):
        old = tasks.square
        sent = b"".join(_pickles.dumps_task(old, (1,), {}))
        self.assertIs(_pickles.load_task(sent)[0], old)
        tasks.square = tasks.fail
        try:
            self.assertIs(_pickles.load_task(sent)[0], tasks.fail)
            by_value = _pickles.load_task(b"".join(_pickles.dumps_task(old, (1,), {})))[0]
            self.assertEqual(by_value(3), 9)
        finally:
            tasks.square = old
        self.assertEqual(b"".join(_pickles.dumps_task(old, (1,), {})), sent)

    def test_the_pickle_of_a_function_is_cached_until_its_closure_changes(self):
        offset, mutable = 3, []

        def fixed(x):
            return x + offset

        def loose():
            return mutable

        self.assertIs(_pickles._kept(fixed), _pickles._kept(fixed))
        self.assertIsNone(_pickles._kept(loose))
        before = _pickles._kept(fixed)
        offset = 4
        self.assertIsNot(_pickles._kept(fixed), before)

    def test_an_error_while_pickling_is_raised(self):
        with self.assertRaisesRegex(ValueError, "not by me"):
            _pickles.dumps(tasks.RaisesAtPickle())

    def test_an_answer_without_a_message_has_a_default_one(self):
        self.assertEqual(str(_errors.of_answer(b'{"cause": "exit:1"}')), "the worker exited: exit:1")


if __name__ == "__main__":
    unittest.main()
