"""A strict client of `streams.py`: event streams, WebSockets, slow uploads and slow downloads, which begin again when
they end.

Usage: streams_client.py PORT EVENT_STREAMS WEBSOCKETS UPLOADS [PATH]. It writes `connected` when all streams are open. At
the end of its stdin it closes them, and writes a JSON object for each that has ended before: its kind, process, begin and
end in Unix seconds, and how it ended. `told` is as it should be.
"""

import asyncio
import json
import os
import sys
import time

# A stream whose message does not arrive in this time has failed.
PATIENCE = 20

# A WebSocket whose client only listens gets nothing until its worker is recycled.
SILENCE = 300

# The time that an upload takes, in this number of parts.
UPLOAD, PARTS = 4.0, 40

results = []
open_streams = set()
# The process that each stream has had last.
processes = {}
all_open = asyncio.Event()
stops = False


def record(kind, process, begun, how):
    if not stops:
        results.append({"kind": kind, "pid": process, "begun": begun, "ended": time.time(), "how": how})


async def head(reader):
    text = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    return text.split(b" ", 2)[1], text.lower()


async def again(stream, wanted, number, *arguments):
    """Opens a stream again and again."""
    while not stops:
        writer = None
        begun = time.time()
        processes[number] = None

        def opened(process):
            processes[number] = process
            open_streams.add(number)
            if len(open_streams) == wanted:
                all_open.set()

        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", arguments[0])
            how = await stream(reader, writer, opened, *arguments[1:])
        except (OSError, EOFError, asyncio.TimeoutError, ValueError) as error:
            how = "failed: %r" % error
            await asyncio.sleep(0.05)
        if writer is not None:
            writer.close()
        record(stream.__name__, processes[number], begun, how)


async def event_stream(reader, writer, opened, path):
    writer.write(b"GET %s HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n" % path.encode())
    status, headers = await head(reader)
    if status != b"200" or b"transfer-encoding: chunked" not in headers:
        raise ValueError("answer %r" % headers)
    body = b""
    while True:
        line = await asyncio.wait_for(reader.readuntil(b"\r\n"), PATIENCE)
        size = int(line, 16)
        chunk = await asyncio.wait_for(reader.readexactly(size + 2), PATIENCE)
        if size == 0:
            return "told" if body.endswith(b"\n\n") else "ended within an event"
        body = (body + chunk[:-2])[-1000:]
        if b"data: " in body and body.endswith(b"\n\n"):
            opened(int(body.rsplit(b"data: ", 1)[1]))


def frame(opcode, payload):
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes((0x80 | opcode, 0x80 | len(payload))) + mask + masked


async def read_frame(reader):
    first, length = await asyncio.wait_for(reader.readexactly(2), SILENCE)
    if length > 125:
        raise ValueError("a long frame")
    return first & 0x0F, await asyncio.wait_for(reader.readexactly(length), PATIENCE)


async def websocket(reader, writer, opened, number):
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    status, headers = await head(reader)
    if status != b"101":
        raise ValueError("answer %r" % headers)

    async def talk():
        while True:
            # Half of the clients send often, and some only listen.
            await asyncio.sleep(0.1 if number % 2 else 0.5)
            if number % 5:
                writer.write(frame(1, b"hello"))

    talking = None
    try:
        while True:
            opcode, payload = await read_frame(reader)
            if opcode == 8:
                talking.cancel()
                writer.write(frame(8, payload))
                # The server closes the connection (RFC 6455, section 7.1.1). autobahn resets it then.
                try:
                    rest = await asyncio.wait_for(reader.read(), PATIENCE)
                except ConnectionResetError:
                    rest = b""
                code = int.from_bytes(payload[:2], "big")
                return "told" if code in (1001, 1012) and not rest else "closed with %d %r" % (code, rest)
            if opcode == 9:
                writer.write(frame(10, payload))
            elif talking is None:
                opened(int(payload))
                talking = asyncio.ensure_future(talk())
            elif payload != b"hello":
                raise ValueError("message %r" % payload)
    finally:
        if talking is not None:
            talking.cancel()


async def upload(reader, writer, opened):
    writer.write(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (PARTS * 1000))
    for _ in range(PARTS):
        writer.write(b"x" * 1000)
        await writer.drain()
        await asyncio.sleep(UPLOAD / PARTS)
    status, headers = await head(reader)
    length = int(headers.split(b"content-length: ")[1].split(b"\r\n")[0])
    body = await asyncio.wait_for(reader.readexactly(length), PATIENCE)
    return "told" if status == b"200" and body == b"received:%d\n" % (PARTS * 1000) else "answer %r" % body


async def download(reader, writer, opened):
    writer.write(b"GET /download HTTP/1.1\r\nHost: a\r\n\r\n")
    status, _ = await head(reader)
    lines = b""
    while True:
        size = int(await asyncio.wait_for(reader.readuntil(b"\r\n"), PATIENCE), 16)
        lines += (await asyncio.wait_for(reader.readexactly(size + 2), PATIENCE))[:-2]
        if size == 0:
            lines = lines.splitlines()
            return "told" if len(lines) == 101 and lines[-1].startswith(b"end:") else "only %d lines" % len(lines)


async def main(port, event_streams, websockets, uploads, path="/events"):
    global stops
    port = int(port)
    counts = int(event_streams), int(websockets), int(uploads)
    wanted = counts[0] + counts[1]
    tasks = [again(event_stream, wanted, number, port, path) for number in range(counts[0])]
    tasks += [again(websocket, wanted, counts[0] + number, port, number) for number in range(counts[1])]
    tasks += [again(upload, wanted, None, port) for _ in range(counts[2])]
    tasks += [again(download, wanted, None, port) for _ in range(counts[2])]
    tasks = [asyncio.ensure_future(task) for task in tasks]
    if wanted:
        await all_open.wait()
    print("connected", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    stops = True
    for task in tasks:
        task.cancel()
    for result in results:
        print(json.dumps(result))


asyncio.run(main(*sys.argv[1:]))
