"""Large tasks, setups and results: only one copy is in memory while they are sent or received."""

#: A larger body is received into a buffer of its own, and sent without being copied.
CHUNK = 1 << 18
#: A frame has its length in four bytes.
LONGEST = (1 << 32) - 1


def body_of(sock, waiting, head, length):
    """Reads the rest of a frame that begins in `waiting`, empties `waiting`, and returns the frame's body.

    The result is None at the end of the socket. If there is no memory for the body (`RLIMIT_DATA`), it is
    read and thrown away, and the result is the MemoryError.
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
    """Reads the rest of `body`, from `at` on. False at the end of the socket."""
    with memoryview(body) as view:
        while at < len(body):
            read = sock.recv_into(view[at:])
            if not read:
                return False
            at += read
    return True


def skip(sock, length):
    """Reads `length` bytes and throws them away. False at the end of the socket."""
    while length:
        part = sock.recv(min(length, CHUNK))
        if not part:
            return False
        length -= len(part)
    return True


def drop(body):
    """Frees a received body. Called when its content is loaded, and before that is used."""
    if len(body) > CHUNK:
        try:
            body.clear()
        except BufferError:
            # The loaded objects refer to its memory.
            pass
