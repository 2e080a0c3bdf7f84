"""Compiles the modules of the agent once for all processes of a service.

Many images of containers set PYTHONDONTWRITEBYTECODE. Then each worker would compile each module that it imports, which
takes longer than the import itself. The directory of the agent belongs to the supervisor and goes with the service, so
its modules are kept compiled there nevertheless.
"""

import sys

# What `importlib.machinery` is made of, and every interpreter has loaded.
import _frozen_importlib_external as external


class Loader(external.SourceFileLoader):
    def get_code(self, fullname):
        try:
            self.compile_once(fullname)
        except Exception:
            # Another user's process cannot write the file, or this Python has other functions for it.
            pass
        return super().get_code(fullname)

    def compile_once(self, fullname):
        source = self.get_filename(fullname)
        compiled = external.cache_from_source(source)
        if external._path_isfile(compiled):
            return
        code = self.source_to_code(self.get_data(source), source)
        stats = self.path_stats(source)
        data = external._code_to_timestamp_pyc(code, int(stats["mtime"]), stats["size"])
        # Another process may do the same at the same time. This renames the file when it is complete.
        self._cache_bytecode(source, compiled, data)


def keep():
    """From now on, the modules of this package are loaded like this."""
    if sys.dont_write_bytecode:
        package = __file__.rpartition("/")[0]
        sys.path_importer_cache[package] = external.FileFinder(package, (Loader, external.SOURCE_SUFFIXES))
