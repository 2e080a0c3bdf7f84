"""Needs two seconds to stop, and asks for them by sd_notify(3) if its argument is "asks"."""
import os
import signal
import socket
import sys
import time

stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))


def notify(text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])


print("works", flush=True)
while not stopping:
    time.sleep(0.05)
if sys.argv[1:] == ["asks"]:
    notify("EXTEND_TIMEOUT_USEC=20000000\nSTATUS=writing batch 7")
print("stops", flush=True)
time.sleep(2)
print("saved", flush=True)
