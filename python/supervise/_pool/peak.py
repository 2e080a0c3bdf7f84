"""The peak memory of a worker, as measured by the worker. It writes the figures into its page.

The kernel keeps a maximum of resident memory. That includes mapped files, for which there is no separate maximum.
"""

import resource

from .protocol import BASE, CHILD, FILES, LARGEST, MOST


class Peak:
    def __init__(self, page):
        self.page = page
        #: The best estimate: the kernel's maximum without the files that are still mapped.
        self.kib = 0
        self.most = 0
        self.child = 0
        self.files = 0

    def begin(self):
        """Records the figures at the start, when the imports and the initializer are done."""
        self.update()
        self.page[BASE] = self.kib

    def update(self):
        """Updates the figures after a task."""
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        if most == self.most and child == self.child:
            return
        self.most, self.child = most, child
        self.files = max(self.files, mapped_files())
        self.kib = min(max(most - self.files, 0) + child, LARGEST)
        page = self.page
        page[FILES] = self.files
        page[CHILD] = child
        page[MOST] = most


def mapped_files():
    """Resident pages of files, in KiB (proc(5), `RssFile`); 0 if the kernel does not report them."""
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"RssFile:"):
                    return int(line.split()[1])
    except (OSError, ValueError, MemoryError):
        pass
    return 0
