"""Starts two child processes of HELPER_MB megabytes each. Their memory counts as the worker's."""

import os
import subprocess
import sys
import time

SIZE = int(os.environ.get("HELPER_MB", "20"))
HELPER = f"import time; kept = bytearray(b'x') * ({SIZE} << 20); print('held', flush=True); time.sleep(600)"

helpers = [
    subprocess.Popen([sys.executable, "-c", HELPER], stdout=subprocess.PIPE) for _ in range(2)
]
for helper in helpers:
    helper.stdout.readline()
print("ready", flush=True)
time.sleep(600)
