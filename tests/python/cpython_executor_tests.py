"""CPython's own tests of ProcessPoolExecutor, run against `supervise.Executor`.

`python cpython_executor_tests.py [template|fresh]` takes the test classes for process pools from the
`test_concurrent_futures` of the running interpreter, changes only the executor that they create, and compares each
outcome with EXPECTED. A test named there must fail as described there, and all others must pass. Otherwise the exit
status is 1. `-v` prints the time of each test.
Tests of thread pools, of futures alone, and of the state that multiprocessing leaves behind are not run.
"""
import concurrent.futures
import faulthandler
import gc
import importlib
import os
import pkgutil
import re
import sys
import threading
import time
import traceback
import unittest

import supervise

HERE = os.path.dirname(os.path.abspath(__file__))
TESTS = "test.test_concurrent_futures"
START = "SUPERVISE_TESTS_START"
#: The time limit in seconds for all tests together.
LIMIT = 300

#: Why a test does not pass: a description, and a pattern that its failure must match.
INSIDE = "uses private attributes of ProcessPoolExecutor (_processes, its thread, its context)", "has no attribute '_"
DEATH = "expects a broken pool when a worker dies: here only the future of its task fails", "WorkerDied: "
EXIT = "expects the SystemExit of a task as its exception: here it ends the worker", "WorkerDied: .*exit"
LOADING = "expects a broken pool when a pickle does not load: here the future of its task has the exception"
LOAD = LOADING, "UnpicklingError"
LOAD_EXIT = LOADING, "SystemExit: 1"
PRINT = "expects the output of a task on standard output: here it goes to standard error, marked", r"\[task 1\]"
INHERIT = "passes a multiprocessing.Queue in initargs, which can only be inherited", "through inheritance"
THREADS = "allows only one thread, and expects that to break the pool: ours needs no more", "TypeError: mul"
KEYWORD = "passes submit's fn by keyword: deprecated in 3.8, removed in 3.9", "argument: 'fn'"
EARLY = (
    "cancels before a worker is ready, and expects that some futures already run",
    "AssertionError: 0 not greater than 0",
)
WINDOWS = "is for Windows", "skipped: Windows-only"

EXPECTED = {
    "FailingInitializerMixin.test_initializer": INHERIT,
    "ProcessPoolShutdownTest.test_cancel_futures": EARLY,
    "ProcessPoolShutdownTest.test_context_manager_shutdown": INSIDE,
    "ProcessPoolShutdownTest.test_del_shutdown": INSIDE,
    "ProcessPoolShutdownTest.test_hang_gh83386": PRINT,
    "ProcessPoolShutdownTest.test_interpreter_shutdown": PRINT,
    "ProcessPoolShutdownTest.test_processes_terminate": INSIDE,
    "ProcessPoolShutdownTest.test_shutdown_no_wait": INSIDE,
    "ProcessPoolExecutorTest.test_idle_process_reuse_multiple": INSIDE,
    "ProcessPoolExecutorTest.test_idle_process_reuse_one": INSIDE,
    "ProcessPoolExecutorTest.test_killed_child": INSIDE,
    "ProcessPoolExecutorTest.test_max_workers_too_large": WINDOWS,
    "ProcessPoolExecutorTest.test_saturation": INSIDE,
    "ProcessPoolExecutorTest.test_max_tasks_per_child": INSIDE,
    "ProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context": INSIDE,
    "ProcessPoolExecutorTest.test_python_finalization_error": THREADS,
    "ExecutorDeadlockTest.test_crash_at_task_unpickle": DEATH,
    "ExecutorDeadlockTest.test_crash_big_data": DEATH,
    "ExecutorDeadlockTest.test_crash_during_func_exec_on_worker": DEATH,
    "ExecutorDeadlockTest.test_crash_during_result_pickle_on_worker": DEATH,
    "ExecutorDeadlockTest.test_error_at_task_unpickle": LOAD,
    "ExecutorDeadlockTest.test_error_during_result_unpickle_in_result_handler": LOAD,
    "ExecutorDeadlockTest.test_exit_at_task_unpickle": DEATH,
    "ExecutorDeadlockTest.test_exit_during_func_exec_on_worker": EXIT,
    "ExecutorDeadlockTest.test_exit_during_result_unpickle_in_result_handler": LOAD_EXIT,
    "ExecutorDeadlockTest.test_shutdown_deadlock": DEATH,
    "ExecutorDeadlockTest.test_shutdown_deadlock_pickle": INSIDE,
    # In 3.8 the tests above are parts of one test.
    "ExecutorDeadlockTest.test_crash[crash at task unpickle]": DEATH,
    "ExecutorDeadlockTest.test_crash[crash during func execution on worker]": DEATH,
    "ExecutorDeadlockTest.test_crash[crash during result pickle on worker]": DEATH,
    "ExecutorDeadlockTest.test_crash[error at task unpickle]": LOAD,
    "ExecutorDeadlockTest.test_crash[error during result unpickle in result_handler]": LOAD,
    "ExecutorDeadlockTest.test_crash[exit at task unpickle]": DEATH,
    "ExecutorDeadlockTest.test_crash[exit during func execution on worker]": EXIT,
    "ExecutorDeadlockTest.test_crash[exit during result unpickle in result_handler]": LOAD_EXIT,
}
if sys.version_info < (3, 9):
    EXPECTED["ProcessPoolExecutorTest.test_submit_keyword"] = KEYWORD


class Executor(supervise.Executor):
    """The executor that the tests create. It ignores the context, which does not apply to our workers."""

    def __init__(self, max_workers=None, mp_context=None, initializer=None, initargs=(), **more):
        start = os.environ.get(START, "template")
        super().__init__(max_workers, initializer=initializer, initargs=initargs, start=start, **more)


class Named(Executor):
    """The executor under the name `ProcessPoolExecutor`. Tests skip some checks only for the real class."""


class Futures:
    """Replaces `concurrent.futures` in the test modules."""

    ProcessPoolExecutor = Named

    def __getattr__(self, name):
        return getattr(concurrent.futures, name)


def modules():
    """The test modules. Empty if the interpreter does not have them."""
    try:
        top = importlib.import_module(TESTS)
    except ModuleNotFoundError as error:
        if error.name not in ("test", TESTS):
            raise
        return []
    names = [name for _, name, _ in pkgutil.iter_modules(getattr(top, "__path__", []), TESTS + ".")]
    return [top] + [importlib.import_module(name) for name in names]


def run_script(run):
    """`assert_python_ok` for scripts that import an executor by its name: replaces it by ours."""

    def run_ours(option, code):
        code = re.sub(r"from concurrent\.futures import", "from cpython_executor_tests import", code)
        # The only script with this call has not imported multiprocessing, and we have no such method.
        code = code.replace("multiprocessing.set_start_method(", "str(")
        return run(option, code, PYTHONPATH=os.pathsep.join([HERE, *filter(None, sys.path)]))

    return run_ours


def adapt():
    """The test classes by name: CPython's for pools of spawned processes, with our executor."""
    made = {}
    for module in modules():
        if hasattr(module, "futures"):
            module.futures = Futures()
        if hasattr(module, "assert_python_ok"):
            module.assert_python_ok = run_script(module.assert_python_ok)
        for kind in list(vars(module).values()):
            names = [base.__name__ for base in getattr(kind, "__bases__", ())]
            if names[1:2] == ["ProcessPoolSpawnMixin"]:
                body = {"executor_type": Executor, "__module__": __name__}
                made[names[0]] = type(names[0], (kind,), body)
                if names[0] == "FailingInitializerMixin":
                    # It also has a variant for executors without a context.
                    name = names[0] + "_without_context"
                    made[name] = type(name, (kind.__bases__[0], *kind.__bases__[2:]), body)
    return made


if __name__ != "__main__":
    globals().update(adapt())


def name_of(test, part=None):
    name = "{}.{}".format(type(test).__name__, test._testMethodName)
    return name if part is None else "{}[{}]".format(name, part)


class Result(unittest.TestResult):
    """The outcome of each test: None if it passed, otherwise its failure. A subtest counts as a test."""

    def __init__(self):
        super().__init__()
        self.outcomes = {}
        self.support = importlib.import_module("test.support")
        self.support.verbose = 0

    def startTest(self, test):
        super().startTest(test)
        self.support.environment_altered = False
        self.begun = time.monotonic()
        self.parts = self.failed = False
        self.note(test, None)

    def note(self, test, seen, part=None):
        self.failed = self.failed or seen is not None
        self.outcomes[name_of(test, part)] = seen

    def addSkip(self, test, reason):
        self.note(test, "skipped: " + reason)

    def addError(self, test, error):
        if not isinstance(test, unittest.TestCase):
            raise error[1]
        self.note(test, self.failure_text(error, test))

    addFailure = addError

    def addExpectedFailure(self, test, error):
        self.note(test, "fails as CPython expects")

    def addSubTest(self, test, subtest, error):
        self.parts = True
        self.note(test, error and self.failure_text(error, subtest), subtest._message)

    def failure_text(self, error, test):
        """The failure as text. Clears the frames, so that objects such as executors become garbage."""
        text = self._exc_info_to_string(error, test)
        cause = error[1]
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        return text

    def stopTest(self, test):
        # A failed test has not shut down its executor.
        gc.collect()
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join(10)
        if self.support.environment_altered and not self.failed:
            self.note(test, "left threads or processes behind")
        if self.parts and self.outcomes[name_of(test)] is None:
            del self.outcomes[name_of(test)]
        if "-v" in sys.argv:
            took = time.monotonic() - self.begun
            print("{:6.2f} s {}".format(took, name_of(test)), file=sys.stderr, flush=True)


def main():
    kinds = [kind for kind in globals().values() if isinstance(kind, type)]
    kinds = [kind for kind in kinds if issubclass(kind, unittest.TestCase)]
    if not kinds:
        print("no test_concurrent_futures in this interpreter")
        return 0
    if sys.argv[1:2] not in ([], ["-v"]):
        os.environ[START] = sys.argv[1]
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    result = Result()
    load = unittest.defaultTestLoader.loadTestsFromTestCase
    unittest.TestSuite(map(load, kinds)).run(result)
    return report(result.outcomes)


def report(outcomes):
    """Compares the outcomes with EXPECTED and prints the differences. Returns the exit status."""
    passed, differ, wrong = 0, 0, 0
    for name, seen in outcomes.items():
        words, sign = EXPECTED.get(name, (None, None))
        # Sometimes a worker is ready in time, and the test passes.
        if seen is None and (words is None or words is EARLY[0]):
            passed += 1
        elif seen is not None and words is not None and re.search(sign, seen):
            differ += 1
            print("differs: {}: {}".format(name, words))
        else:
            wrong += 1
            print("UNEXPECTED: {}: {}".format(name, seen or "passed"))
    line = "Python {}: {} passed, {} differ as expected, {} unexpected"
    print(line.format(sys.version.split()[0], passed, differ, wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    # Workers can import it by this name.
    from cpython_executor_tests import main

    sys.exit(main())
