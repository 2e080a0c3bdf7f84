"""The protocol between the agent and the supervisor: the page of counters, requests and answers.

`src/protocol` documents each value. `tests/golden/protocol` has examples that both sides are tested with.
Another version is not an error: the supervisor then treats the worker as one without an agent.
"""

from struct import Struct

VERSION = 1
# Old supervisors and agents do not write a version, so it is 0. Their protocol is the same as version 1.
UNDERSTOOD = range(VERSION + 1)

# The page consists of words of 64 bits: a header, then slots of 16 words.
SLOT_WORDS = 16
SLOT_BYTES = SLOT_WORDS * 8

# Words of the header.
MAGIC, SLOTS, SLOT_LENGTH, FAILED_BOOTS, PAGE_VERSION, ROUTES_VERSION = range(6)
MAGIC_NUMBER = 0x31505553

# Words of a slot.
PID, STARTED, FINISHED, IGNORED, BEGUN_NS, DONE_NS, DRAIN, ERRORS, FLAGS, READY_NS, TOLD, SERVES = range(12)
# The inodes of the sockets from which the server of this process accepts.
LISTENERS = range(12, 16)

# Bits of FLAGS. The upper half of FLAGS is the version of the agent.
COUNTING, TRACING, DRAINING = 1, 2, 4
VERSION_FLAGS = VERSION << 32

# The areas of the routes follow the slots, one for each slot: counters of ROUTES routes and of all others, then the
# names. A name begins with its length. Between them is the path of the request, or the name of the task, that was begun
# last, filled up with zeros.
ROUTES = 64
AREAS_VERSION = 1
FIRST_AREA = 8704
AREA_WORDS = 1024
FIRST_NAME, NAME_WORDS = 72, 14
LAST_BEGUN, LAST_BEGUN_BYTES = 66 * 8, 6 * 8
# write_last_begun(area, LAST_BEGUN, text): a longer text is cut off, and a shorter one is filled up.
write_last_begun = Struct("%ds" % LAST_BEGUN_BYTES).pack_into
NAME_MAX = (NAME_WORDS - 1) * 8


def words(memory):
    """A page or a slot as a sequence of words in native byte order. Access to a word is one load or store."""
    return memoryview(memory).cast("Q")


def sink():
    """The words of a slot that is not on a page."""
    slot = words(bytearray(SLOT_BYTES))
    slot[FLAGS] = VERSION_FLAGS
    return slot


def is_understood(page):
    """Whether the page has the layout above."""
    return (
        page[MAGIC] == MAGIC_NUMBER and page[SLOT_LENGTH] == SLOT_BYTES and page[PAGE_VERSION] in UNDERSTOOD
    )


def bases(page):
    """The index of the first word of each slot of the page."""
    return range(SLOT_WORDS, SLOT_WORDS * (1 + page[SLOTS]), SLOT_WORDS)


def area(page, base):
    """The words for the routes of the process with the slot at `base`. None if the page has no such words."""
    first = FIRST_AREA + AREA_WORDS * (base // SLOT_WORDS - 1)
    if page[ROUTES_VERSION] != AREAS_VERSION or len(page) < first + AREA_WORDS:
        return None
    return page[first : first + AREA_WORDS]


def area_sink():
    """The words of an area that is not on a page."""
    return words(bytearray(AREA_WORDS * 8))


def write_name(area, index, name):
    """Names a route. The supervisor reads the name when it has a length, so the length is written last."""
    text = name.encode("utf-8", "replace")[:NAME_MAX].decode("utf-8", "ignore").encode()
    first = FIRST_NAME + NAME_WORDS * index
    area.cast("B")[(first + 1) * 8 : (first + 1) * 8 + len(text)] = text
    area[first] = len(text)


def check(question):
    """Raises a ValueError if the supervisor has another version of the protocol."""
    version = question.get("protocol", 0)
    if version not in UNDERSTOOD:
        raise ValueError("the supervisor speaks protocol %s, and this agent %d" % (version, VERSION))


def answer(question):
    """The common part of the answer to a request."""
    return {"id": question.get("id"), "protocol": VERSION, "do": question.get("do"), "ok": True}


class Grammar:
    """The settings of the C scanner: the defaults of json.JSONDecoder."""

    strict = False
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo = {}


# This uses only the C module `_json`: `json` imports `re`, which is too large to import in a signal handler.
def parse(text):
    import _json

    return _json.make_scanner(Grammar)(text.strip(), 0)[0]


def render(value):
    kind = type(value)
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return str(value)
    if kind is float:
        return repr(value) if value - value == 0 else "null"
    if kind is str:
        import _json

        return _json.encode_basestring_ascii(value)
    if kind is dict:
        return "{%s}" % ",".join(["%s:%s" % (render(str(k)), render(v)) for k, v in value.items()])
    if kind is list or kind is tuple:
        return "[%s]" % ",".join([render(v) for v in value])
    return render("<%s>" % kind.__name__)
