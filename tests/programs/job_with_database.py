"""A program that cannot start while the file AWAY exists, and otherwise runs until SIGTERM."""

import os
import signal

if os.path.exists(os.environ["AWAY"]):
    raise RuntimeError("the database is away")

signal.sigwait({signal.SIGTERM})
