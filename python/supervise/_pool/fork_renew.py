"""What a fork of the template makes its own: random generators, and what is done at the exit."""

import atexit
import gc
import os
import random
import struct
import sys

_SEEDED_BY_SYSTEM = 1 << 64
_WORDS = struct.Struct("<8I")


class Seeds:
    """Which `random.Random` was seeded with a number of the user's, while it is in use as a context."""

    def __init__(self):
        import weakref

        self.given = weakref.WeakSet()

    def __enter__(self):
        original = self.original = random.Random.seed
        given = self.given

        def seed(self, a=None, version=2):
            original(self, a, version)
            if type(self) is random.Random:  # One of the user's may not be hashable.
                (given.discard if a is None else given.add)(self)

        random.Random.seed = seed
        return self

    def __exit__(self, *_):
        random.Random.seed = self.original


class Generators:
    """The random generators that are in the template: forks would all draw the same numbers from them.

    The global ones are seeded anew in each worker, and so are all others that were not seeded with a number of the
    user's: one that was gives the same numbers in each worker, as it does where each worker imports by itself.
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
                pass  # One of another version than those known: no task is to fail for it.


def loaded(name):
    """What is in a module that is imported. One that waits to be used first (LazyLoader) is not woken."""
    return contents(sys.modules.get(name))


def contents(module):
    try:
        return object.__getattribute__(module, "__dict__")
    except AttributeError:
        return {}


def is_seeded(generator, seeds):
    """Whether it was seeded with a number of the user's. The system's has 128 random bits."""
    if isinstance(generator, random.Random):
        return generator in seeds.given
    bits = getattr(generator, "_bit_generator", None) or getattr(generator, "bit_generator", None)
    sequence = generator if bits is None else sequence_of(bits)
    entropy = getattr(sequence, "entropy", 0)
    return not isinstance(entropy, int) or entropy < _SEEDED_BY_SYSTEM


def sequence_of(bits):
    # Its public name is of numpy 1.25.
    return getattr(bits, "seed_seq", None) or getattr(bits, "_seed_seq", None)


def seed_itself(generator):
    generator.seed()


def seed_legacy(state):
    try:
        # A tenth of the time of `seed()`, which fills all of the state from the system.
        state.seed(_WORDS.unpack(os.urandom(_WORDS.size)))
    except TypeError:
        # It draws from another bit generator than its own.
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
    """What imports have registered for the exit of the template is not done at the exit of its forks.

    What the standard library does for all in a process stays, emptied of what the template has brought: files that
    a worker makes are removed, its processes are ended, its log is flushed.
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
        # Later ones are told by `threading`.
        stays += [loaded("concurrent.futures." + name).get("_python_exit") for name in ("process", "thread")]
    util = loaded("multiprocessing.util")
    if "_exit_function" in util:
        # As multiprocessing does in its own forks. Its finalizers know their process themselves.
        loaded("multiprocessing.process")["_children"].clear()
        stays.append(util["_exit_function"])
    for handler in stays:
        if handler is not None:
            atexit.register(handler)
