"""The agent that `supervise` runs inside a Python worker: it counts and drains requests, and answers the supervisor.

The agent never starts a thread, prints nothing and raises nothing into the application. It imports only itself until
the worker imports a supported server or the supervisor sends a request. Errors in the agent are swallowed and counted
on the page, where the supervisor sees them.
"""
