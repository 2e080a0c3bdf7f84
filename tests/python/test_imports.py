"""A request that interrupts an import does not break the import, although the agent imports modules to answer it.

    python test_imports.py AGENT        AGENT is the folder that holds the package of the agent
"""

import os
import signal
import subprocess
import sys
import tempfile
import types

sys.path.insert(0, sys.argv[1])
import _agent
from _agent import boot

SIGNAL = signal.SIGRTMIN + 5
TIMES = 1_000

# Another process sends the signals, at times that do not depend on the imports.
SENDER = """
import os, sys, time
while True:
    os.kill(int(sys.argv[1]), int(sys.argv[2]))
    time.sleep(0.001)
"""


class Answers:
    """Finds the module that answers, which is imported again for each request."""

    times = 0

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "_agent.ask":
            from importlib.machinery import ModuleSpec

            return ModuleSpec(name, cls)
        return None

    @staticmethod
    def create_module(spec):
        return types.ModuleType(spec.name)

    @staticmethod
    def exec_module(module):
        module.answer = Answers.answer

    @classmethod
    def answer(cls):
        cls.times += 1
        sys.modules.pop("_agent.ask", None)
        vars(_agent).pop("ask", None)


def main():
    directory = tempfile.mkdtemp()
    with open(os.path.join(directory, "tiny.py"), "w"):
        pass
    os.mkdir(os.path.join(directory, "ask"))
    with open(os.path.join(directory, "ask", str(os.getpid())), "w"):
        pass
    sys.path.insert(0, directory)
    sys.meta_path.insert(0, Answers)
    boot._directory = directory
    signal.signal(SIGNAL, boot._asked)
    sender = subprocess.Popen([sys.executable, "-c", SENDER, str(os.getpid()), str(int(SIGNAL))])
    while Answers.times < TIMES:
        sys.modules.pop("tiny", None)
        import tiny  # noqa: F401
    sender.kill()
    sender.wait()
    print("OK")


main()
