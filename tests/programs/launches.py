"""Executes its arguments with the directory of a tool first on PYTHONPATH, as opentelemetry-instrument does."""

import os
import sys

front = os.path.join(os.path.dirname(os.path.abspath(__file__)), "front")
os.environ["PYTHONPATH"] = os.pathsep.join([front, os.environ.get("PYTHONPATH", "")])
os.execl(sys.argv[1], *sys.argv[1:])
