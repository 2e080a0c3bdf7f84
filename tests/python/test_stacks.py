"""A process writes its stack whenever it is asked to, whatever its other threads do meanwhile.

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

# Another process asks: so it happens while this thread waits, and others run.
ASKS = """
import os, sys
pid, number, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
for time in range(int(sys.argv[4])):
    os.kill(pid, number)
    if time % 50 == 0:
        os.truncate(path, 0)
"""


def spin(depth):
    """Makes frames and the code that they run, and drops both."""
    if depth:
        exec("spin(depth - 1)", {"spin": spin, "depth": depth})


def spins_for_ever():
    while True:
        spin(5)


def main():
    sys.path.insert(0, sys.argv[1])
    import _agent.boot

    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/stacks"
        open(path, "w").close()
        _agent.boot.install(folder)
        for _ in range(3):
            threading.Thread(target=spins_for_ever, daemon=True).start()
        words = [str(os.getpid()), str(int(SIGNAL)), path, str(TIMES)]
        asks = subprocess.Popen([sys.executable, "-c", ASKS, *words])
        while asks.poll() is None:
            time.sleep(0.001)
        os.truncate(path, 0)
        os.kill(os.getpid(), SIGNAL)
        with open(path) as file:
            said = file.read()
    assert asks.returncode == 0
    assert said.startswith("Stack (most recent call first):\n"), said
    assert " in main\n" in said, said
    print("OK", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
