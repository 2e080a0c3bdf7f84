"""Names that keep objects alive: an index of the globals of modules and of the attributes of classes.

The search for a holder ends at the first object with a name. So the names are known before it starts: a registry with
thousands of entries is then found by its name, and not only if it is among the few referrers that are followed.
"""
import sys

from . import introspect, source_locations

# Seconds for the index: it stops there. Modules of the app come first.
SECONDS = 0.3
# Modules with the same file, or with names that differ only in numbers, are repeated if there are this many.
REPEATED = 8
# Objects of these types have too many names to tell anything.
PLAIN = frozenset((str, bytes, int, float, bool, complex, type(None), type(Ellipsis), type(NotImplemented)))
FRAME = type(sys._getframe())
TRACEBACK = BaseException.__dict__["__traceback__"].__get__
# Maximum number of exceptions whose frames are indexed, and of frames of one exception.
EXCEPTIONS = 3000
FRAMES = 60


class Roots:
    """`modules` is {id of a namespace: (label, namespace)}, `names` is {id of an object: (name, whether it is a name
    of the app)}, and `repeated` is {label that stands for many modules: their file}."""

    def __init__(self, budget):
        self.modules = introspect.modules()
        self.names = {}
        self.repeated = fold_repeated(self.modules)
        until = budget.left() - SECONDS
        for app_only in (True, False):
            for label, namespace in list(self.modules.values()):
                if budget.left() < until:
                    budget.missing.append("names: not all modules were read")
                    return
                if is_app_module(namespace) == app_only:
                    self.add_module(label, namespace, app_only)

    def add_module(self, label, namespace, is_app):
        repeated = label in self.repeated
        for key, value in list(namespace.items()):
            if type(key) is not str or key.startswith("__"):
                continue
            kind = type(value)
            if issubclass(kind, type) and introspect.module_of(value) == label:
                self.add_class("%s.%s" % (label, key), value, is_app)
            self.add(label if repeated else "%s.%s" % (label, key), value, is_app)

    def add_class(self, name, kind, is_app):
        for key, value in list(introspect.class_dict(kind).items()):
            if type(key) is str and not key.startswith("__"):
                self.add("%s.%s" % (name, key), value, is_app)

    def add(self, name, value, is_app):
        if type(value) not in PLAIN and type(value) is not tuple and not introspect.is_program_object(value):
            self.names.setdefault(id(value), (name, is_app))

    def is_app(self, thing):
        """Whether an object has a name in the app."""
        return self.names.get(id(thing), (None, False))[1]

    def is_unique(self, thing):
        """Whether an object has a name that stands only for itself."""
        name = self.names.get(id(thing), (None, False))[0]
        return name is not None and name not in self.repeated

    def parts(self):
        """The agent's own containers, which the search must not follow."""
        return [self, self.__dict__, self.modules, self.names, self.repeated] + list(self.modules.values())


def is_app_module(namespace):
    file = namespace.get("__file__")
    return type(file) is str and source_locations.is_app(file)


def fold_repeated(modules):
    """Gives modules that were loaded again and again one label. Returns {such a label: the file}."""
    names = dict(modules)
    by_file = {}
    by_name = {}
    for key, (name, namespace) in modules.items():
        file = namespace.get("__file__")
        if type(file) is str and not source_locations.is_standard(file):
            by_file.setdefault(file, []).append(key)
        if folded(name) != name:
            by_name.setdefault(folded(name), []).append(key)
    files = {}
    for groups in (by_name, by_file):
        for group in groups.values():
            if len(group) >= REPEATED:
                name, namespace = names[group[-1]]
                label = "sys.modules['%s']" % folded(name)
                files[label] = namespace.get("__file__")
                for key in group:
                    modules[key] = (label, modules[key][1])
    return files


def folded(name):
    """The name with its numbers, in decimal or as long hexadecimal strings, replaced by `*`."""
    import re
    return re.sub(r"[0-9a-f]*[0-9][0-9a-f]{5,}|[0-9]+", "*", name)


def frames_of_exceptions(things):
    """{id of a frame: exception} for the exceptions among `things`. A traceback links one frame to the next, so a
    search through it would need one level for each frame."""
    found = {}
    count = 0
    for thing in things:
        if not issubclass(type(thing), BaseException):
            continue
        step = TRACEBACK(thing)
        left = FRAMES
        while step is not None and left:
            found.setdefault(id(step.tb_frame), thing)
            step = step.tb_next
            left -= 1
        count += left != FRAMES
        if count >= EXCEPTIONS:
            break
    step = thing = None
    return found
