"""Tasks in queues of a Redis (REDIS: its port). Each task counts itself, and leaks LEAK_KB.

`python queues.py SYSTEM TASKS PAUSE` feeds that many tasks, with a pause of so many seconds after each, waits until
all are done, and prints how many were lost and how many were done twice. SYSTEM is `rq`, `huey`, `taskiq`
or `dramatiq`.
"""

import json
import os
import sys
import time

import redis

PORT = int(os.environ["REDIS"])
LEAK = int(os.environ.get("LEAK_KB", "0")) << 10
URL = "redis://127.0.0.1:%d/0" % PORT
PATIENCE = 60.0

counts = redis.Redis(port=PORT, db=1)
kept = []


def task(number):
    kept.append(bytearray(LEAK))
    time.sleep(0.02)
    counts.hincrby("done", number, 1)


def _feed_rq():
    from rq import Queue

    queue = Queue(connection=redis.Redis(port=PORT))
    return lambda number: queue.enqueue(task, number)


def _feed_huey():
    import queues_huey

    return queues_huey.task


def _feed_dramatiq():
    import queues_dramatiq

    return queues_dramatiq.task.send


def _feed_taskiq():
    import asyncio

    import queues_taskiq

    loop = asyncio.new_event_loop()
    loop.run_until_complete(queues_taskiq.broker.startup())
    return lambda number: loop.run_until_complete(queues_taskiq.task.kiq(number))


def main(system, tasks, pause):
    feed = globals()["_feed_" + system]()
    for number in range(tasks):
        feed(number)
        time.sleep(pause)
    until = time.monotonic() + PATIENCE
    while counts.hlen("done") < tasks and time.monotonic() < until:
        time.sleep(0.1)
    # A task that is done twice is done twice soon.
    time.sleep(1.0)
    done = [int(count) for count in counts.hvals("done")]
    print(json.dumps({"lost": tasks - len(done), "doubled": sum(count > 1 for count in done)}))


if __name__ == "__main__":
    # A task is named after its module, and workers import this file under this name.
    import queues

    queues.main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
