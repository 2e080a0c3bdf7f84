"""The processes of a pool: the template imports the modules, fork servers fork workers, and workers run tasks.

`supervise` starts the template (`template.py`) and holds one end of each socket named here. It watches all processes
through the kernel, and does not need this code to notice that one has exited.
"""
