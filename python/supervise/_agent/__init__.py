"""What `supervise` runs inside a Python worker: it counts requests, drains them, and answers asks.

It never starts a thread, never prints, never raises into the application, and imports nothing but
itself until a server it knows is imported or the supervisor asks something. What goes wrong in here
is swallowed and counted on the page, where the supervisor sees it.
"""
