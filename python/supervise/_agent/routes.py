"""Counts the requests of each route, at a fifth of a microsecond for each request; a new path takes two microseconds.

The supervisor compares these counts with the growth of the worker. The route of a request is its template
(`/users/<id>`) if the framework has one, or else its path, in which numbers and ids are replaced (`/users/{n}`).

A hook of the framework leaves the template in `environ`, or in the scope of ASGI.
"""

from itertools import count, repeat

from . import page, protocol

# A hook leaves the template of a request under this key.
KEY = "supervise.route"

# Maximum number of paths of which the route is remembered.
PATHS_MAX = 2048
# Longer paths are cut off.
PATH_MAX = 256
# Longer parts of a path are ids.
PART_MAX = 40

DIGITS = "0123456789"
LETTERS = "abcdefABCDEF-"


class Table:
    """The counters of a process. Each is one call in C, as in `counting.py`."""

    def __init__(self, area):
        self.area = area
        self.free = count()
        # Name of a route -> its counter. There are a few more than names if threads add the same name at the same time.
        self.named = {}
        # Path or template -> the counter of its route.
        self.known = {}
        self.other = self.counter(protocol.ROUTES)
        # Whether the framework names routes. Then a request without a template has no route (404).
        self.has_templates = False

    def counter(self, index):
        return map(self.area.__setitem__, repeat(index), count(1)).__next__

    def of(self, name):
        """The counter of a route. The first routes have their own counters, and all others have one together."""
        counter = self.named.get(name)
        if counter is None:
            index = next(self.free)
            if index >= protocol.ROUTES:
                return self.other
            protocol.write_name(self.area, index, name)
            counter = self.named.setdefault(name, self.counter(index))
        return counter

    def learn(self, key, name):
        if len(self.known) >= PATHS_MAX:
            self.known.clear()
        counter = self.known[key] = self.of(name)
        return counter


def _renew():
    global _table
    _table = Table(page.routes)


page.on_change(_renew)


def wsgi(environ):
    """Counts a request of a WSGI application that is finished."""
    try:
        template = environ.get(KEY)
        if template is None:
            _count_path(environ.get("PATH_INFO"))
        else:
            _count_template(template)
    except Exception:
        page.swallowed()


def asgi(scope):
    """Counts a request of an ASGI application that is finished."""
    try:
        template = scope.get(KEY)
        if template is None:
            _count_path(scope.get("path"))
        else:
            _count_template(template)
    except Exception:
        page.swallowed()


def task(name):
    """Counts a task that is finished."""
    try:
        _count_template(name)
    except Exception:
        page.swallowed()


def _count_template(template):
    table = _table
    (table.known.get(template) or _learn_template(table, template))()


def _learn_template(table, template):
    table.has_templates = True
    return table.learn(template, template) if isinstance(template, str) else table.other


def _count_path(path):
    table = _table
    (table.known.get(path) or _learn_path(table, path))()


def _learn_path(table, path):
    if table.has_templates or not isinstance(path, str):
        return table.other
    return table.learn(path, fold(path))


def fold(path):
    """A path in which numbers and ids are replaced: `/users/{n}`."""
    return "/".join([_fold(part) for part in path[:PATH_MAX].split("/")])


def _fold(part):
    if part.isdigit():
        return "{n}"
    if len(part) > PART_MAX:
        return "{id}"
    # A hexadecimal number or a UUID. A word may have the same letters, but no digit.
    if len(part) >= 8 and not part.strip(DIGITS + LETTERS) and part.strip(LETTERS):
        return "{id}"
    # `v2` is a name, and `order1234` is not.
    name = part.rstrip(DIGITS)
    return name + "{n}" if len(part) - len(name) >= 3 else part


def flask(module):
    """Flask finds the route of a request here. Until 3.1 this is a method of another class."""
    owner = vars(module).get("RequestContext") or module.AppContext
    original = owner.match_request

    def match_request(self):
        result = original(self)
        try:
            request = self.request
            rule = request.url_rule
            request.environ[KEY] = rule.rule if rule is not None else False
        except Exception:
            page.swallowed()
        return result

    _replace(owner, "match_request", original, match_request)


def django(module):
    """Django finds the route of a request here, in sync and in async views."""
    handler = module.BaseHandler
    original = handler.resolve_request

    def resolve_request(self, request):
        match = original(self, request)
        try:
            carrier = request.scope if hasattr(request, "scope") else request.environ
            carrier[KEY] = "/" + match.route
        except Exception:
            page.swallowed()
        return match

    _replace(handler, "resolve_request", original, resolve_request)


def starlette(module):
    """Starlette and FastAPI call this for the route of a request."""
    for kind in (module.Route, module.WebSocketRoute):
        _hook_handle(kind)


def _hook_handle(kind):
    original = kind.handle

    def handle(self, scope, receive, send):
        try:
            # The path of the applications that are mounted above the route.
            above = scope.get("root_path", "")[len(scope.get("app_root_path", scope.get("root_path", ""))) :]
            scope[KEY] = above + self.path
        except Exception:
            page.swallowed()
        return original(self, scope, receive, send)

    _replace(kind, "handle", original, handle)


def falcon(module):
    """Falcon finds the route of a request here, for WSGI and for ASGI."""
    original = module.App._get_responder

    def _get_responder(self, req):
        found = original(self, req)
        try:
            carrier = req.scope if hasattr(req, "scope") else req.env
            if found[3] is not None:
                carrier[KEY] = found[3]
        except Exception:
            page.swallowed()
        return found

    _replace(module.App, "_get_responder", original, _get_responder)


def _replace(owner, name, original, replacement):
    from . import servers

    servers.replace(owner, name, original, replacement)
