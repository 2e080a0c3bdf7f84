"""Five child processes, each of which takes 30 MB a little after its start and no more after that."""

import subprocess
import sys
import time

CHILD = "import time; time.sleep(1.5); kept = bytearray(b'x') * (30 << 20); time.sleep(600)"
children = [subprocess.Popen([sys.executable, "-c", CHILD]) for _ in range(5)]
time.sleep(600)
