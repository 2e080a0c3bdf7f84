"""Large tasks, setups and results: each is in memory once while it is sent or received."""

#: What is larger is read into memory of its own, and sent by itself.
CHUNK = 1 << 18
#: A frame says its length in four bytes.
LONGEST = (1 << 32) - 1


def body_of(sock, waiting, head, length):
    """The body of a frame of which `waiting` has the head and a part; `waiting` is emptied.

    None at the end of the socket. Where there is no memory for it (`RLIMIT_DATA`), the body is read
    and dropped, and the MemoryError is the result.
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
    """So many bytes."""
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
    """Reads so many bytes and drops them. False at the end of the socket."""
    while length:
        part = sock.recv(min(length, CHUNK))
        if not part:
            return False
        length -= len(part)
    return True


def drop(body):
    """Gives back the memory of what was received, once it is loaded and before it is used."""
    if len(body) > CHUNK:
        try:
            body.clear()
        except BufferError:
            # What was loaded from it refers to it.
            pass
