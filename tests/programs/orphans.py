"""Leaves twenty orphans, each of which ends a moment later. Then waits for the seconds in its argument."""

import os
import sys
import time

for number in range(20):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.2)
            if number == 19:
                print(f"their parent is {os.getppid()}", flush=True)
            os._exit(0)
        os._exit(0)
    os.wait()
time.sleep(0.5)
print("ready", flush=True)
time.sleep(float(sys.argv[1]))
