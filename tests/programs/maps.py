"""A server and a job that map files: `/KIND?mb=N` maps N megabytes of that kind and keeps the mapping."""

import mmap
import os
import sys
import urllib.parse

FOLDER = os.environ.get("MAPS_FOLDER", ".")
TMPFS = os.environ.get("MAPS_TMPFS", "/dev/shm")
MEGABYTE = 1 << 20
KEPT = []


def file(where, size):
    path = os.path.join(where, "maps-%d-%d" % (os.getpid(), len(KEPT)))
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for _ in range(size // MEGABYTE):
        os.write(fd, b"x" * MEGABYTE)
    if where != TMPFS:
        os.unlink(path)
    return fd


def keep(kind, size):
    """Maps a file as numpy.memmap does with the modes `r`, `r+` and `c`, or a memfd, or a named file in a tmpfs."""
    if kind == "memfd":
        fd = os.memfd_create("maps")
        os.ftruncate(fd, size)
    else:
        fd = file(TMPFS if kind == "named" else FOLDER, size)
    if kind == "r":
        it = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        it[0:size:4096]
    else:
        it = mmap.mmap(fd, size, mmap.MAP_PRIVATE if kind == "c" else mmap.MAP_SHARED)
        it[0:size:4096] = b"y" * (size // 4096)
    os.close(fd)
    KEPT.append(it)


def app(environ, start_response):
    kind = environ["PATH_INFO"].strip("/")
    if kind:
        query = urllib.parse.parse_qs(environ["QUERY_STRING"])
        keep(kind, int(query["mb"][0]) * MEGABYTE)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok:%d\n" % os.getpid()]


if __name__ == "__main__":
    keep(sys.argv[1], int(sys.argv[2]) * MEGABYTE)
    KEPT.append(bytearray(b"x") * (int(sys.argv[3]) * MEGABYTE))
    for it in KEPT:
        it[0 : len(it) : 4096]
    print("done", flush=True)
