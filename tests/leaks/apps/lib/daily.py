"""The innocent part of every app: it allocates much and keeps little, as most code does."""

import json
import os
from collections import deque
from functools import lru_cache

# A warm cache and a short memory: both grow at first, and both are bounded.
RECENT = deque(maxlen=200)


@lru_cache(maxsize=256)
def price(article):
    return {"article": article, "prices": [article * step for step in range(20)]}


def work(number):
    """Parses, formats and throws away; gives a short text."""
    rows = [{"id": row, "name": f"row {number} {row}", "tags": ["a", "b"]} for row in range(150)]
    parsed = json.loads(json.dumps(rows))
    total = sum(price((number + row["id"]) % 1000)["article"] for row in parsed)
    text = ",".join(row["name"].upper() for row in parsed)
    RECENT.append((number, total))
    return text[:40]


def answer():
    """The body that the strict client expects."""
    return f"ok:{os.getpid()}\n"
