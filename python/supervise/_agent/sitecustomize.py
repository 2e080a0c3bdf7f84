"""The door by which the agent enters a worker: `supervise` puts this directory first on PYTHONPATH.

Python of any age may read this file, 2.7 too; the agent itself is only for 3.8 and later.
"""

import os
import sys

_here = os.path.dirname(__file__)

# Only when this very directory is asked for: with one supervisor inside another both are on the
# path, and the inner one counts.
if sys.version_info >= (3, 8) and os.environ.get("SUPERVISE_AGENT") == _here:
    try:
        from _supervise_agent import boot, first

        boot.install(_here)
        first.install(_here)
    except Exception:
        pass


def _chain():
    """Runs the sitecustomize that would have run without us.

    For that time our directory is off the path, so that one which chains in its turn does not come
    back here. What it raises is passed on: site.py reports it as it always would.
    """
    ours = sys.modules.pop("sitecustomize", None)
    before = sys.path[:]
    sys.path[:] = [entry for entry in before if entry != _here]
    without = sys.path[:]
    try:
        import sitecustomize
    except ImportError:
        # Missing is the usual case; an import that failed inside one is its own affair.
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
# The `sitecustomize` that _chain() ran may have put its own directory back to the front.
if "first" in globals():
    first._quietly(os.environ, _here)
