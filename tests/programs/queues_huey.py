"""A consumer of huey."""

import queues
from huey import RedisHuey

huey = RedisHuey("queues", url=queues.URL)
task = huey.task()(queues.task)
