"""A worker of dramatiq."""

import dramatiq
import queues
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(RedisBroker(url=queues.URL))
task = dramatiq.actor(queues.task)
