"""Loads the agent into a worker: `supervise` puts this directory first on PYTHONPATH.

Any version of Python may execute this file, even 2.7. The agent itself needs 3.8 or later.
"""

import os
import sys

_here = os.path.dirname(__file__)

# Only if SUPERVISE_AGENT names this directory: if one supervisor runs inside another, both directories are on the
# path, and the inner one must be used.
if sys.version_info >= (3, 8) and os.environ.get("SUPERVISE_AGENT") == _here:
    try:
        from _supervise_agent import bytecode

        bytecode.keep()
        from _supervise_agent import boot, first

        boot.install(_here)
        first.install(_here)
    except Exception:
        pass


def _chain():
    """Runs the `sitecustomize` that Python would have run without the agent.

    Meanwhile the agent's directory is not on the path, so that a `sitecustomize` that chains as well does not run this
    file again. Its exceptions are passed on: site.py reports them as it does without the agent.
    """
    ours = sys.modules.pop("sitecustomize", None)
    before = sys.path[:]
    sys.path[:] = [entry for entry in before if entry != _here]
    without = sys.path[:]
    try:
        import sitecustomize  # noqa: F401
    except ImportError:
        # Usually there is no other one. If there is one and an import in it failed, site.py must report that.
        if sys.exc_info()[1].args[:1] not in _MISSING:
            raise
        sys.modules["sitecustomize"] = ours
    finally:
        if sys.path == without:
            sys.path[:] = before
        elif _here not in sys.path:
            sys.path.insert(0, _here)


_MISSING = (("No module named 'sitecustomize'",), ("No module named sitecustomize",))
_chain()
# The `sitecustomize` that _chain() ran may have moved its own directory to the front again.
if "first" in globals():
    first.reorder_quietly(os.environ, _here)
