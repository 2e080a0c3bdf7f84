"""A pool with one child process over the cap (`pool`), or a child program over the cap (`program`)."""

import subprocess
import sys
from multiprocessing import Pool


def part(megabytes):
    return len(bytearray(megabytes << 20))


if __name__ == "__main__":
    if sys.argv[1] == "pool":
        with Pool(2) as pool:
            print(pool.map(part, [1, 400]))
    else:
        code = "x = bytearray(400 << 20); x[::4096] = b'x' * len(x[::4096])"
        subprocess.run([sys.executable, "-c", code])
