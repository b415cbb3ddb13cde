"""Hurts the process that it is imported into, as `POET_TEST_FAULT` (JSON) says; Python imports it at its start.

read_error: {"match": part of a path, "times": N}: the first N reads of such files fail with EIO.
read_hang: {"match": ..., "after": N}: such a read never returns, after N of them.
not_finite: [numbers of batches]: their text states are NaN.
clock: {"when": a path, "by_s": seconds}: the clock jumps by so much when the path is there.
constants: {module: {name: value}}.
kill: {"below": a folder, "at": N}: SIGKILL before the Nth change of what lies there: a file is opened for writing,
renamed or removed, a folder is made or removed.
"""

import errno
import importlib.abc
import importlib.util
import itertools
import json
import os
import signal
import sys
import threading
import time

FAULT = json.loads(os.environ.get("POET_TEST_FAULT") or "{}")


def hurt_reads(hurt, match):
    real, lock, counted = os.pread, threading.Lock(), [0]

    def pread(number, *rest):
        if match in os.readlink(f"/proc/self/fd/{number}"):
            with lock:
                counted[0] += 1
                count = counted[0]
            hurt(count)
        return real(number, *rest)

    os.pread = pread


def fail(count):
    if count <= FAULT["read_error"]["times"]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def hang(count):
    if count > FAULT["read_hang"]["after"]:
        time.sleep(10**6)


# Events of changes, with the place of the descriptor that their path is relative to.
CHANGES = {"open": None, "os.mkdir": 2, "os.remove": 1, "os.rename": 2, "os.rmdir": 1}


def changed(event, args):
    """The path that an event is about to change; '' for any other event."""
    if event not in CHANGES or isinstance(args[0], int):
        return ""
    if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
        return ""
    folder = args[CHANGES[event]] if CHANGES[event] else -1
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else "", os.fsdecode(args[0]))


def kill(below, at):
    numbers = itertools.count(1)

    def hook(event, args):
        if changed(event, args).startswith(below) and next(numbers) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


class Poisoned:
    """An iterator of batches some of which are not finite; its position knows how many were taken."""

    def __init__(self, batches, numbers):
        self._batches, self._numbers, self._taken = batches, set(numbers), 0

    def __next__(self):
        import numpy as np

        batch = dict(next(self._batches))
        if self._taken in self._numbers:
            batch["text_states"] = np.full_like(batch["text_states"], np.nan)
            batch["text_length"] = np.ones_like(batch["text_length"])
        self._taken += 1
        return batch

    def get_state(self):
        return self._taken.to_bytes(8, "little") + self._batches.get_state()

    def set_state(self, state):
        self._taken = int.from_bytes(state[:8], "little")
        self._batches.set_state(state[8:])


class AfterImport(importlib.abc.MetaPathFinder):
    """Changes a module once it is imported."""

    def __init__(self, name, change):
        self._name, self._change = name, change

    def find_spec(self, name, path, target=None):
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), self._change(module))
        return spec


def poison(loader):
    real = loader.batches
    loader.batches = lambda *a, **k: {n: Poisoned(b, FAULT["not_finite"]) for n, b in real(*a, **k).items()}


def jumped(real, when, by_s):
    return lambda: real() + (by_s if os.path.exists(when) else 0)


if "clock" in FAULT:
    time.time = jumped(time.time, FAULT["clock"]["when"], FAULT["clock"]["by_s"])
if "kill" in FAULT:
    kill(**FAULT["kill"])
if "read_error" in FAULT:
    hurt_reads(fail, FAULT["read_error"]["match"])
if "read_hang" in FAULT:
    hurt_reads(hang, FAULT["read_hang"]["match"])
if "not_finite" in FAULT:
    sys.meta_path.insert(0, AfterImport("poet.data.loader", poison))
for name, values in FAULT.get("constants", {}).items():
    sys.meta_path.insert(0, AfterImport(name, lambda module, values=values: vars(module).update(values)))
