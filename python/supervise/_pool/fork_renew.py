"""Renews what forks of the template must not share: the state of random generators, and exit handlers."""

import array
import atexit
import gc
import os
import random
import sys

_SEEDED_BY_SYSTEM = 1 << 64
_SEED_WORDS = 8


class Seeds:
    """Within its context, records each `random.Random` that the user's code seeds with a number."""

    def __init__(self):
        import weakref

        self.given = weakref.WeakSet()

    def __enter__(self):
        original = self.original = random.Random.seed
        given = self.given

        def seed(self, a=None, version=2):
            original(self, a, version)
            if type(self) is random.Random:  # Objects of a user's subclass may not be hashable.
                (given.discard if a is None else given.add)(self)

        random.Random.seed = seed
        return self

    def __exit__(self, *_):
        random.Random.seed = self.original


class Generators:
    """The random generators of the template. Without new seeds all forks would draw the same numbers from them.

    Each worker seeds the global generators again, and all others that the user has not seeded with a number. A
    generator that the user has seeded gives the same numbers in each worker, just as if each worker imported the
    module itself.
    """

    def __init__(self, seeds):
        self.globals = []
        self.others = []
        torch = loaded("torch")
        self.add(self.globals, torch.get("default_generator"), seed_itself)
        legacy = loaded("numpy.random.mtrand").get("_rand")
        self.add(self.globals, legacy, seed_legacy)
        # CPython itself seeds the global generator of `random` again in each fork.
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
                pass  # A library of an unknown version must not make tasks fail.


def loaded(name):
    """The attributes of an imported module. This does not trigger the load of a lazy module (LazyLoader)."""
    return contents(sys.modules.get(name))


def contents(module):
    try:
        return object.__getattribute__(module, "__dict__")
    except AttributeError:
        return {}


def is_seeded(generator, seeds):
    """Whether the user has seeded a generator with a number. A seed from the system has 128 random bits."""
    if isinstance(generator, random.Random):
        return generator in seeds.given
    bits = getattr(generator, "_bit_generator", None) or getattr(generator, "bit_generator", None)
    sequence = generator if bits is None else sequence_of(bits)
    entropy = getattr(sequence, "entropy", 0)
    return not isinstance(entropy, int) or entropy < _SEEDED_BY_SYSTEM


def sequence_of(bits):
    # Before numpy 1.25 the attribute has no public name.
    return getattr(bits, "seed_seq", None) or getattr(bits, "_seed_seq", None)


def seed_itself(generator):
    generator.seed()


def seed_legacy(state):
    try:
        # `seed()` takes ten times as long, because it reads the whole state from the system.
        state.seed(array.array("I", os.urandom(4 * _SEED_WORDS)).tolist())
    except TypeError:
        # The bit generator is not the usual one (MT19937) and cannot be seeded this way.
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
    """Removes the exit handlers that imports have registered in the template, so that forks do not run them.

    The handlers of the standard library stay, but forget their entries from the template. At the exit of a worker
    they remove its temporary files, end its processes and flush its logs.
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
        # multiprocessing clears this in its own forks, too. Each of its finalizers runs only in the process that
        # registered it.
        loaded("multiprocessing.process")["_children"].clear()
        stays.append(util["_exit_function"])
    for handler in stays:
        if handler is not None:
            atexit.register(handler)
