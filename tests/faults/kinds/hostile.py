"""Readers of files of others, fed with mutated ones."""

from __future__ import annotations

import functools
import random
import shutil

import fault_inputs
from fault_registry import Fault, Outcome, register
from fault_world import World


def fuzzed(name: str, world: World, rng: random.Random, times: int) -> Outcome:
    folder = world.new("inputs")
    try:
        return Outcome(times=times, lost=fault_inputs.fuzz(name, folder, rng, times))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


for name in fault_inputs.READERS:
    register(
        Fault(
            name=f"input: {name}, mutated",
            wanted="read, or refused by a `UserError`",
            do=functools.partial(fuzzed, name),
            short=0,
            long=100_000,
        )
    )
