"""A job that computes its result row by row, and keeps all of it until the end."""
# leak: a script that builds a huge list
# serve: job
# limits: --cap 200M
# verdict: python
# holder: job_row_by_row.RESULT
# outcome: capped

import math

RESULT = []


def compute(number):
    roots = [math.sqrt(number + step) for step in range(10)]
    return {"number": number, "mean": sum(roots) / 10, "label": f"row {number}"}  # <-- leaks here


for number in range(3_000_000):
    RESULT.append(compute(number))
print(f"computed {len(RESULT)} rows")
