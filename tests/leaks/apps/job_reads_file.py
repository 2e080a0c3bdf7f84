"""A job that reads a whole file into memory, line by line."""
# leak: a script that reads a whole file
# serve: job
# limits: --cap 200M
# verdict: python
# holder: job_reads_file.rows -
# outcome: capped

import os


def write(path):
    with open(path, "w") as file:
        for number in range(700_000):
            file.write(f"{number},customer {number % 977},{number * 3},{number * 0.5}\n")


def parse(line):
    number, name, amount, price = line.rstrip().split(",")  # <-- leaks here
    row = {"number": int(number), "name": name}  # <-- leaks here
    row.update(amount=int(amount), price=float(price))  # <-- leaks here
    return row


path = os.path.join(os.environ.get("HOME", "/tmp"), "rows.csv")
write(path)
with open(path) as file:
    rows = [parse(line) for line in file]  # <-- leaks here
print(f"read {len(rows)} rows")
