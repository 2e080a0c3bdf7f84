"""The agent answers every request, also one that is sent while the answer to another is written.

    python test_ask.py AGENT        AGENT is the folder that holds the package of the agent
"""

import json
import os
import sys
import tempfile

sys.path.insert(0, sys.argv[1])
from _agent import ask


def main():
    ask.DIR = tempfile.mkdtemp()
    for name in ("ask", "said"):
        os.mkdir(os.path.join(ask.DIR, name))
    answered = []
    write = ask.write

    def request(number):
        with open(ask.path_of(os.getpid()), "w") as file:
            json.dump({"id": number, "protocol": 1, "do": "close"}, file)

    def write_and_be_signalled(directory, pid, text):
        write(directory, pid, text)
        answered.append(json.loads(text)["id"])
        if answered[-1] < 3:
            # The supervisor has seen the answer, and its next signal comes before the handler has returned.
            request(answered[-1] + 1)
            ask.answer()

    ask.write = write_and_be_signalled
    request(1)
    ask.answer()
    assert answered == [1, 2, 3], answered
    assert not ask.busy and not ask.signalled
    print("OK")


main()
