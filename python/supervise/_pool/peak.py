"""The most that a worker held, as far as it can say itself: its words in the page.

Resident memory has a maximum that the kernel keeps; mapped files are a part of it and have none.
"""

import resource

#: Where the figures stand in the page, in KiB.
MOST, FILES, CHILD, BASE = 16, 17, 18, 19
HIGHEST = 0xFFFFFFFF


class Peak:
    def __init__(self, page):
        self.page = page
        #: The most that it held, for want of better: without files that are still mapped.
        self.kib = 0
        self.most = 0
        self.child = 0
        self.files = 0

    def begin(self):
        """All is imported and initialized."""
        self.look()
        self.page[BASE] = self.kib

    def look(self):
        """After a task."""
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        if most == self.most and child == self.child:
            return
        self.most, self.child = most, child
        self.files = max(self.files, mapped_files())
        self.kib = min(max(most - self.files, 0) + child, HIGHEST)
        page = self.page
        page[FILES] = self.files
        page[CHILD] = child
        page[MOST] = most


def mapped_files():
    """Resident pages of files, in KiB (proc(5), `RssFile`); 0 where the kernel does not tell."""
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"RssFile:"):
                    return int(line.split()[1])
    except (OSError, ValueError, MemoryError):
        pass
    return 0
