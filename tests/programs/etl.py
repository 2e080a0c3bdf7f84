"""A job that allocates --mb megabytes and exits with --status."""

import argparse
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--date", default="today")
parser.add_argument("--mb", type=int, default=1)
parser.add_argument("--status", type=int, default=0)
options = parser.parse_args()

kept = [bytearray(b"x") * (1 << 20) for _ in range(options.mb)]
print(f"loaded {len(kept)} MB of {options.date}", flush=True)
sys.exit(options.status)
