"""The processes of a pool: a template that imports, nests that fork, workers that work.

`supervise` starts the template (`template.py`), holds one end of each socket named here, and sees
every process by its own means. Nothing here is needed for it to notice that one has ended.
"""
