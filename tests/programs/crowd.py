"""Starts as many child processes as its argument says. All of them sleep."""

import os
import signal
import sys
import time

for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        signal.pause()
        os._exit(0)
print("ready", flush=True)
time.sleep(600)
