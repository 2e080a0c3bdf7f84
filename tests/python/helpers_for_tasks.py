"""Functions that the tests of the executor run in workers. They can import them, unlike code in `__main__`."""
import os
import signal
import threading
import time

FLAG = "unset"


def square(x):
    return x * x


def capture(*args, **kwargs):
    return args, kwargs


def fail(text):
    raise KeyError(text)  # the line that fails


class Stubborn(Exception):
    """Its pickle cannot be loaded: the constructor needs two arguments."""

    def __init__(self, one, two):
        super().__init__(one)


def fail_stubbornly():
    raise Stubborn("first", "second")


def lock_as_result():
    return threading.Lock()


def hold(megabytes):
    block = bytearray(megabytes << 20)
    for at in range(0, len(block), 4096):
        block[at] = 1
    return len(block)


def leave(status):
    os._exit(status)


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def raise_signal(number):
    os.kill(os.getpid(), number)


def say(first, last, end=None):
    print(first)
    print(last, end="", flush=True)
    if end == "exits":
        os._exit(3)
    if end == "is killed":
        kill_self()
    if end == "reaches its cap":
        hold(400)


def say_pid_and_hang(path):
    with open(path + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".new", path)
    time.sleep(600)


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.005)
    return path


def begin_and_wait_for(begun, path):
    open(begun, "w").close()
    return wait_for(path)


def set_flag(value):
    global FLAG
    FLAG = value


def get_flag():
    return FLAG


def announce(events):
    events.put("started")


def put(names, name):
    names[name] = True
    return name


def fail_at_start():
    raise ValueError("no licence for this machine")


class Counted:
    """Counts how often it is pickled in the client."""

    pickled = 0

    def __reduce__(self):
        Counted.pickled += 1
        return int, (1,)


class RaisesAtPickle:
    def __reduce__(self):
        raise ValueError("not by me")


class RaisesAtLoad:
    def __reduce__(self):
        return fail, ("at load",)


def return_raises_at_load():
    return RaisesAtLoad()
