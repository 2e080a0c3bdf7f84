"""A worker of taskiq."""

import queues
from taskiq_redis import ListQueueBroker

broker = ListQueueBroker(queues.URL)
task = broker.task(queues.task)
