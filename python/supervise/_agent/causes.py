"""Finds the cause of the growth of a suspect, and the advice for it. The first rule that fits gives the advice."""
import sys

from . import introspect, steps

# Steps that tell the cause at once, with the advice.
KNOWN = (
    ("_pylab_helpers.Gcf", "pyplot keeps each figure until it is closed: call plt.close(figure) after use, or create "
     "matplotlib.figure.Figure without pyplot"),
    ("_sqlalchemy_queries", "SQLALCHEMY_RECORD_QUERIES keeps each query in the context of the app: turn it off, or "
     "push a context for each unit of work (`with app.app_context():`)"),
)
# This number of threads, loggers or clients is no accident.
MANY = 8
CALLABLE = ("function", "method", "functools.partial", "weakref.WeakMethod", "weakref.ReferenceType", "weakref")
MAPPINGS = ("dict", "collections.OrderedDict", "collections.defaultdict", "OrderedDict", "defaultdict")


class Suspect:
    """A suspect, with the facts about its cause."""

    def __init__(self, suspect, line):
        self.holder = suspect["holder"]
        self.chain = suspect["chain"]
        self.where = suspect["where"]
        self.type = suspect["type"]
        self.count = suspect["count"]
        self.growth = suspect["growth_bytes"]
        self.function = suspect["function"]
        facts = suspect.get("facts") or {}
        self.kind = facts.get("kind")
        # {kind: (count, place, type)} of all objects of this holder
        self.kinds = facts.get("kinds") or {}
        self.types = facts.get("types") or set()
        self.root = facts.get("root") or ""
        self.entry = facts.get("entry")
        self.is_app = facts.get("is_app", True)
        self.is_view = facts.get("is_view", False)
        lines = suspect.get("lines") or {}
        # The line that allocates, which for a thread is not that of the function that runs.
        self.line = "%s:%d" % max(lines, key=lines.get) if lines else self.where or line

    def many(self, kind):
        """The number of objects of this kind, if these are the suspect or are many."""
        count = self.kinds[kind][0] if kind in self.kinds else 0
        return count if self.kind == kind or count >= MANY else 0

    def running(self, kind):
        """Where objects of this kind run."""
        place = self.kinds[kind][1] if kind in self.kinds else None
        return " %s:%d" % place[:2] if place else ""

    def name(self):
        return "`%s`" % self.holder if self.holder else self.chain[0] if self.chain else "something"

    def at(self, what):
        return " (%s %s)" % (what, self.line) if self.line else ""

    def path(self):
        return " ".join([self.holder or ""] + self.chain)


def advice(suspect, line):
    """`line` is the line of the first suspect, for one that has none of its own."""
    one = Suspect(suspect, line)
    for rule in RULES:
        text = rule(one)
        if text is not None:
            return text[:1].upper() + text[1:] + "."
    return None


def line_alone(one):
    if one.holder is None and not one.kind and one.where:
        return "%s at %s keeps what it allocates" % (one.function or "the code", one.where)
    return None


def threads(one):
    if one.kind == "thread" or one.many("thread") and (one.holder or "").startswith("threading."):
        run = one.running("thread")
        return "%d threads%s have not ended%s: let them end, join them, or use one pool of threads" % (
            one.many("thread"), run and " that run" + run, one.at("started at"))
    return None


def tasks(one):
    if one.many("task"):
        run = one.running("task")
        return "%d tasks%s have not ended%s: cancel them, or give them a timeout" % (
            one.many("task"), run and " of" + run, one.at("created at"))
    if one.entry == "coroutine" or one.kind == "generator" and one.type == "coroutine":
        run = one.running("generator")
        return "%d coroutines%s were created and are not awaited to their end%s: await them, or close() them" % (
            one.count, run and " of" + run, one.at("created at"))
    return None


def generators(one):
    if one.kind == "generator":
        place = " of %s" % one.where if one.where else ""
        return "%d generators%s are suspended: read them to their end, or close() them" % (one.count, place)
    return None


def known(one):
    path = one.path()
    if "queries_log" in path:
        setting = "settings.DEBUG is True, so " if is_django_debug() else ""
        return setting + ("Django keeps each query in connection.queries_log: set DEBUG = False, or call "
                          "django.db.reset_queries() after each unit of work" + one.at("the queries come from"))
    for mark, text in KNOWN:
        if mark in path:
            return text + one.at("created at")
    return None


def is_django_debug():
    settings = sys.modules.get("django.conf")
    for name in ("settings", "_wrapped", "DEBUG"):
        settings = dict(introspect.attributes(settings)).get(name) if settings is not None else None
    return settings is True


def at_exit(one):
    if one.holder == "atexit":
        return ("functions that are registered with atexit keep their objects until the process ends: register one "
                "function once, or call atexit.unregister() when the object is closed" + one.at("allocated at"))
    return None


def caches(one):
    if "lru_cache" not in one.root.lower() and "lrucache" not in one.root.lower():
        return None
    if is_in_class(one.holder):
        return ("%s caches a method, so its keys keep each object (`self`) alive: keep the results in the object "
                "(functools.cached_property, or a dict), or cache a function of the plain arguments%s" % (
                    one.name(), one.at("allocated at")))
    return "%s keeps its results (%s): set a maxsize, as in functools.lru_cache(maxsize=1000)%s" % (
        one.name(), size(one), one.at("allocated at"))


def is_in_class(path):
    """Whether `module.NAME.attribute` is an attribute of a class."""
    parts = path.split(".") if path else []
    for length in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:length]))
        if issubclass(type(module), introspect.MODULE_TYPE):
            found = introspect.module_dict(module).get(parts[length])
            return issubclass(type(found), type) and len(parts) > length + 1
    return False


def modules(one):
    if one.holder and one.holder.startswith("sys.modules["):
        return ("modules are loaded again and again under new names, and sys.modules keeps each of them (%s)%s: load "
                "each file once, or delete the entry of sys.modules when it is no longer needed" % (
                    size(one), one.at("loaded at")))
    return None


def logging(one):
    loggers = sorted([text for text in one.types if text.startswith("logger ")])
    if one.many("logger") > one.many("handler") // 2 or one.path().endswith("loggerDict"):
        example = ", such as %s" % loggers[0] if loggers else ""
        return ("loggers with new names are created%s, and logging keeps each of them%s: use one logger for each "
                "module, and put what differs into the message" % (example, one.at("created at")))
    if one.many("handler"):
        return "handlers are added to %s again and again%s: add each handler once, or call removeHandler()" % (
            loggers[0] if loggers else one.name(), one.at("created at"))
    return None


def classes(one):
    if one.kind == "class":
        return "%d classes were created at run time and are kept by %s%s: create each class once" % (
            one.count, one.name(), one.at("created at"))
    return None


def tracebacks(one):
    if "exception" in one.kinds or "frame" in one.types:
        return ("exceptions are kept by %s, and each keeps its traceback with the variables of all frames: keep the "
                "text (traceback.format_exc()), or call error.with_traceback(None)%s" % (
                    one.name(), one.at("allocated at")))
    return None


def views(one):
    if one.is_view:
        return "each entry of %s is a part of a larger array, and keeps all of it: store a copy (.copy())%s" % (
            one.name(), one.at("allocated at"))
    return None


def resources(one):
    if one.many("resource"):
        holder = ", kept by %s" % one.name() if one.holder else ""
        return "%d more `%s` exist%s: create it once%s and share it, or close each one after use" % (
            one.many("resource"), one.kinds["resource"][2], holder,
            ", not at %s for each request," % one.line if one.line else "")
    return None


def outside_python(one):
    texts = {
        steps.THREAD_LOCAL: "remove it from the threading.local at the end of each request",
        steps.CONTEXT: "reset the variable, or end the context that was pushed",
        steps.CALLBACK: "remove the callback when the object is closed",
        steps.C_CODE: "no Python object refers to it, so a C library keeps it or has lost a reference (a missing "
                      "Py_DECREF): try another version of the library",
    }
    if one.holder in texts:
        where = " at %s" % one.line if one.line else ""
        kept = next((text for text in one.chain if "context variable '" in text), one.holder)
        return "%s%s is kept by %s: %s" % (size(one), where and " allocated" + where, kept, texts[one.holder])
    return None


def callbacks(one):
    if one.holder and one.entry in CALLABLE:
        return ("%s grew by %d callbacks that are never removed%s: register them once, or remove them when they are "
                "no longer needed" % (one.name(), one.count, one.at("registered at")))
    return None


def library(one):
    if one.holder and not one.is_app:
        once = "create it once, not at %s for each request" % one.line if one.line else "create it once"
        return "%s of a library keeps %d more `%s` (%s): %s, or close or remove it after use" % (
            one.name(), one.count, one.entry or one.type, size(one), once)
    return None


def kept(one):
    grew = "grew by %d entries" % one.count if one.kind == "container" else "keeps %d more `%s`" % (one.count, one.type)
    what = "remove entries that are no longer needed"
    if one.kind == "container" and one.type in MAPPINGS:
        what = "limit its size (cachetools.LRUCache), or " + what
    elif one.type == "collections.deque":
        what = "limit its size (deque(maxlen=...)), or " + what
    return "%s %s (%s)%s: %s" % (one.name(), grew, size(one), one.at("filled at"), what)


def size(one):
    from . import advice
    return advice.size(one.growth)


RULES = (line_alone, known, at_exit, caches, modules, threads, tasks, generators, logging, tracebacks, classes, views,
         resources, outside_python, callbacks, library, kept)
