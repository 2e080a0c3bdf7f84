"""The protocol between the processes of a pool, its supervisor and the client of an executor.

`src/protocol` documents each value. `tests/golden/protocol` has examples that both sides are tested with.
"""

import json
import struct

#: All sides must have the same version.
VERSION = 1

# Frames: a header and a body.
#: To a worker, or from a client: the length of the body, the kind, the task.
ORDER = struct.Struct("<IBQ")
#: From a worker, or to a client: the same fields, the running time in microseconds, and the peak memory in KiB.
REPLY = struct.Struct("<IBQII")
#: The largest number in a field of four bytes, and so the maximum length of a body.
LARGEST = 0xFFFFFFFF

# Kinds of orders. A setup has the version in the field of the task. A report has a question to the agent as its body.
TASK, QUIT, SETUP, REPORT = b"TQIR"
# Kinds of replies of workers. A hello has the version in the field of the task. The body of a report is the agent's
# answer.
HELLO, RESULT, RAISED, UNSERIALIZABLE, FAILED, NOT_BEGUN, REPORTED = b"HKEUFNR"
# Further kinds of replies to clients. A credit has, in the field of the task, the number of tasks that a client may
# have sent without an answer.
LOST, CREDIT, BROKEN = b"DWX"

#: In bodies: the length of the JSON that precedes a pickle, or of the pickle that precedes this field.
LENGTH = struct.Struct("<I")

# Words of the page that a worker shares with the supervisor.
BEGUN, FINISHED, RECEIVING, HALT, READING = range(5)
MOST, FILES, CHILD, BASE = range(16, 20)

#: A mark in the output of a worker consists of a secret and the number of the task.
SECRET_LENGTH = 16
NO_SECRET = bytes(SECRET_LENGTH)
_NUMBER = struct.Struct("<Q")


def words(memory: memoryview) -> memoryview:
    """A page as a sequence of words in native byte order. Access to a word is one load or store."""
    return memory.cast("Q")


def mark(secret: bytes, number: int) -> bytes:
    """The mark that a worker writes at the end of a task's output."""
    return secret + _NUMBER.pack(number)


def check(version: object) -> None:
    """Raises an error if the other side has another version of the protocol."""
    if version != VERSION:
        raise RuntimeError(
            "the supervisor speaks protocol %s, and the Python package protocol %d. "
            "hint: install the same version of the package and of the binary" % (version, VERSION)
        )


def with_length(text: bytes, pickled: bytes) -> bytes:
    """The body of a raised exception: its description as JSON, then its pickle."""
    return LENGTH.pack(len(text)) + text + pickled


def without_length(body: bytes) -> "tuple[bytes, bytes]":
    """The two parts of such a body."""
    (length,) = LENGTH.unpack_from(body)
    end = LENGTH.size + length
    return body[LENGTH.size : end], body[end:]


# Messages of the template: JSON objects with one key, each in a datagram.
#: The longest message to the template.
MESSAGE_MAX = 256


def decode(datagram: bytes) -> "tuple[str, dict[str, object]]":
    """The name of a message and its content."""
    ((name, content),) = json.loads(datagram).items()
    return name, content


def encode(name: str, content: object) -> bytes:
    """A message with this name."""
    # File names may contain bytes that are not UTF-8.
    text = json.dumps({name: content}, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "replace")


def failed(error: bytes) -> bytes:
    """The message of a template that cannot start; `error` is JSON."""
    return b'{"failed":' + error + b"}"


def ready(unshareable: "list[str]", root: object) -> bytes:
    return encode("ready", {"unshareable": unshareable, "from": root})


def fork_server(slot: int, pid: int) -> bytes:
    return encode("fork_server", {"slot": slot, "pid": pid})


def refused(slot: int, errno: object) -> bytes:
    return encode("refused", {"slot": slot, "errno": errno})


# Messages of fork servers, each in a datagram.
#: To a fork server: the number of the worker to fork.
FORK = struct.Struct("<Q")
#: From a fork server: the kind, the number of the worker, a value, the worker's peak memory in KiB, the secret of its
#: marks.
FORK_REPLY = struct.Struct("<BQiQ16s")
#: The kinds. Their values are: the pid, the errno of fork(2), the status of wait(2).
FORKED, REFUSED, ENDED = b"FRE"
