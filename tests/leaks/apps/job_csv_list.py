"""A job that makes a list of a whole CSV file in one call, in which no Python code runs."""
# leak: a script that reads a whole file in one C call
# serve: job
# limits: --cap 200M
# verdict: python
# holder: -
# outcome: capped

import csv
import os


def write(path):
    with open(path, "w") as file:
        for number in range(900_000):
            file.write(f"{number},customer {number % 977},{number * 3},{number * 0.5}\n")


def load(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))  # <-- leaks here


path = os.path.join(os.environ.get("HOME", "/tmp"), "rows.csv")
write(path)
print(f"read {len(load(path))} rows")
