"""Starts five child processes. Each allocates 30 MB shortly after its start, and nothing later."""

import subprocess
import sys
import time

CHILD = "import time; time.sleep(1.5); kept = bytearray(b'x') * (30 << 20); time.sleep(600)"
children = [subprocess.Popen([sys.executable, "-c", CHILD]) for _ in range(5)]
time.sleep(600)
