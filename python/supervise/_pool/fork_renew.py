"""What each fork of the template replaces by its own: random generators and exit handlers."""

import atexit
import gc
import os
import random
import struct
import sys

_SEEDED_BY_SYSTEM = 1 << 64
_WORDS = struct.Struct("<8I")


class Seeds:
    """Within its context, notes which `random.Random` the user has seeded with a number."""

    def __init__(self):
        import weakref

        self.given = weakref.WeakSet()

    def __enter__(self):
        original = self.original = random.Random.seed
        given = self.given

        def seed(self, a=None, version=2):
            original(self, a, version)
            if type(self) is random.Random:  # A subclass of the user's may not be hashable.
                (given.discard if a is None else given.add)(self)

        random.Random.seed = seed
        return self

    def __exit__(self, *_):
        random.Random.seed = self.original


class Generators:
    """The random generators of the template. Without new seeds all forks would draw the same numbers from them.

    Each worker seeds the global ones again, and all others that the user has not seeded with a number. A generator
    that the user has seeded gives the same numbers in each worker, as it does if each worker imports by itself.
    """

    def __init__(self, seeds):
        self.globals = []
        self.others = []
        torch = loaded("torch")
        self.add(self.globals, torch.get("default_generator"), seed_itself)
        legacy = loaded("numpy.random.mtrand").get("_rand")
        self.add(self.globals, legacy, seed_legacy)
        # CPython itself seeds the global one of `random` in each fork.
        done = [random._inst, legacy, sequence_of(getattr(legacy, "_bit_generator", None))]
        kinds = {random.Random: seed_itself}
        for module, name, way in (
            ("numpy.random.mtrand", "RandomState", seed_legacy),
            ("numpy.random._generator", "Generator", seed_generator),
            ("numpy.random.bit_generator", "SeedSequence", seed_sequence),
        ):
            kind = loaded(module).get(name)
            if kind is not None:
                kinds[kind] = way
        for found in gc.get_objects():
            way = kinds.get(type(found))
            if way is not None and not is_seeded(found, seeds) and not any(found is it for it in done):
                self.add(self.others, found, way)

    def add(self, to, generator, way):
        if generator is not None:
            to.append((generator, way))

    def renew(self):
        for generator, way in self.globals + self.others:
            try:
                way(generator)
            except Exception:
                pass  # A library of an unknown version: tasks do not fail for it.


def loaded(name):
    """The attributes of an imported module. A module that loads at its first use (LazyLoader) is not loaded."""
    return contents(sys.modules.get(name))


def contents(module):
    try:
        return object.__getattribute__(module, "__dict__")
    except AttributeError:
        return {}


def is_seeded(generator, seeds):
    """Whether the user has seeded it with a number. A seed from the system has 128 random bits."""
    if isinstance(generator, random.Random):
        return generator in seeds.given
    bits = getattr(generator, "_bit_generator", None) or getattr(generator, "bit_generator", None)
    sequence = generator if bits is None else sequence_of(bits)
    entropy = getattr(sequence, "entropy", 0)
    return not isinstance(entropy, int) or entropy < _SEEDED_BY_SYSTEM


def sequence_of(bits):
    # Before numpy 1.25 it has no public name.
    return getattr(bits, "seed_seq", None) or getattr(bits, "_seed_seq", None)


def seed_itself(generator):
    generator.seed()


def seed_legacy(state):
    try:
        # `seed()` takes ten times as long: it reads the whole state from the system.
        state.seed(_WORDS.unpack(os.urandom(_WORDS.size)))
    except TypeError:
        # Its bit generator is not the usual one (MT19937), and cannot be seeded this way.
        bits = type(state._bit_generator)()
        state.set_state(type(state)(bits).get_state(legacy=False))


def seed_generator(generator):
    bits = generator.bit_generator
    sequence = sequence_of(bits)
    sequence.__init__()
    bits.state = type(bits)(sequence).state


def seed_sequence(sequence):
    sequence.__init__()


def forget_exit_handlers():
    """Removes the exit handlers that imports have registered in the template: forks do not run them.

    The standard library's own handlers stay, without the template's entries: at the exit of a worker they remove its
    temporary files, end its processes and flush its log.
    """
    atexit._clear()
    stays = []
    logging = loaded("logging")
    if "shutdown" in logging:
        stays.append(logging["shutdown"])
    finalize = loaded("weakref").get("finalize")
    if finalize is not None and finalize._registered_with_atexit:
        for info in finalize._registry.values():
            info.atexit = False
        finalize._dirty = True
        stays.append(finalize._exitfunc)
    if sys.version_info < (3, 9):
        # Later versions register with `threading` instead.
        stays += [loaded("concurrent.futures." + name).get("_python_exit") for name in ("process", "thread")]
    util = loaded("multiprocessing.util")
    if "_exit_function" in util:
        # multiprocessing does the same in its own forks. Each of its finalizers knows the process it belongs to.
        loaded("multiprocessing.process")["_children"].clear()
        stays.append(util["_exit_function"])
    for handler in stays:
        if handler is not None:
            atexit.register(handler)
