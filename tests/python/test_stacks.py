"""A process writes its stack on every signal, whatever its other threads do meanwhile.

    python test_stacks.py AGENT        AGENT is the folder that holds the package of the agent
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

SIGNAL = signal.SIGRTMIN + 6
TIMES = 20_000

# Another process sends the signals, so that they arrive while this thread waits and others run.
SENDER = """
import os, sys
pid, number, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
for time in range(int(sys.argv[4])):
    os.kill(pid, number)
    if time % 50 == 0:
        os.truncate(path, 0)
"""


def spin(depth):
    """Creates frames and the code that they run, and frees both."""
    if depth:
        exec("spin(depth - 1)", {"spin": spin, "depth": depth})


def spin_forever():
    while True:
        spin(5)


def stack_of_main(path):
    """The stack that this process writes on a signal. The kernel may give the signal to another thread, which writes
    its own stack a moment later."""
    until = time.monotonic() + 30
    text = ""
    while " in main\n" not in text and time.monotonic() < until:
        os.truncate(path, 0)
        os.kill(os.getpid(), SIGNAL)
        text = ""
        while not text.endswith("\n") and time.monotonic() < until:
            with open(path) as file:
                text = file.read()
    return text


def main():
    sys.path.insert(0, sys.argv[1])
    import _agent.boot

    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/stacks"
        open(path, "w").close()
        _agent.boot.install(folder)
        for _ in range(3):
            threading.Thread(target=spin_forever, daemon=True).start()
        words = [str(os.getpid()), str(int(SIGNAL)), path, str(TIMES)]
        sender = subprocess.Popen([sys.executable, "-c", SENDER, *words])
        while sender.poll() is None:
            time.sleep(0.001)
        text = stack_of_main(path)
    assert sender.returncode == 0
    assert text.startswith("Stack (most recent call first):\n"), text
    assert " in main\n" in text, text
    print("OK", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
