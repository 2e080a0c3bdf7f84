"""Sends and receives large tasks, setups and results with only one copy in memory."""

#: A body larger than this is received into a buffer of its own, and is sent without a copy.
CHUNK = 1 << 18


def body_of(sock, waiting, head, length):
    """Reads the rest of a frame that begins in `waiting`, empties `waiting`, and returns the frame's body.

    Returns None at the end of the connection. If there is no memory for the body (`RLIMIT_DATA`), reads and discards
    it, and returns the MemoryError.
    """
    part = len(waiting) - head
    try:
        body = bytearray(length)
    except MemoryError as error:
        waiting.clear()
        return error if skip(sock, length - part) else None
    with memoryview(waiting) as view:
        body[:part] = view[head:]
    waiting.clear()
    return body if fill(sock, body, part) else None


def exactly(sock, length):
    """Reads `length` bytes."""
    body = bytearray(length)
    if not fill(sock, body, 0):
        raise EOFError("the supervisor has closed the socket")
    return body


def fill(sock, body, at):
    """Reads the rest of `body`, from `at` on. Returns False at the end of the connection."""
    with memoryview(body) as view:
        while at < len(body):
            read = sock.recv_into(view[at:])
            if not read:
                return False
            at += read
    return True


def skip(sock, length):
    """Reads and discards `length` bytes. Returns False at the end of the connection."""
    while length:
        part = sock.recv(min(length, CHUNK))
        if not part:
            return False
        length -= len(part)
    return True


def drop(body):
    """Frees a received body. Called between the load of its content and the use of that content."""
    if len(body) > CHUNK:
        try:
            body.clear()
        except BufferError:
            # The loaded objects refer to its memory.
            pass
