"""Requests that share a batch: each has the bytes that it has alone, whoever comes, goes, and when."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from poet.sampling.engine import Inputs
from poet.sampling.plans import Text
from poet.sampling.together import Together
from poet.spec import SampleSpec, UserError

SAMPLE = SampleSpec(temperature=1.2, guidance=1.5, block=3)
TASK = "text_to_video"


@functools.cache
def engine(sample: SampleSpec = SAMPLE):
    return tiny.generator(sample).engine(TASK, sample)


@functools.cache
def inputs(count: int, seed: int) -> Inputs:
    return Inputs(text=Text(*tiny.texts(count, seed)))


@functools.cache
def alone(count: int, seed: int) -> np.ndarray:
    """The samples of `poet generate`."""
    return engine().sample(inputs(count, seed), count, SAMPLE.replace(seed=seed))


REQUESTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(0, 3), st.booleans()), min_size=1, max_size=4
)


@settings(max_examples=6, deadline=None)
@given(REQUESTS)
def test_a_request_has_its_own_bytes_in_any_company(asked):
    """(step at which it comes, samples, seed, whether it goes after its first step) of each request."""
    batch, found, step = Together(engine(), SAMPLE), {}, 0
    samplings, seen = {}, {}
    while step < 4 or batch.names:
        for name, (comes, count, seed, _) in enumerate(asked):
            if comes == step:
                samplings[name] = batch.add(name, engine().rows(inputs(count, seed), count), seed)
        for name, progress, done in batch.step():
            seen.setdefault(name, []).append(progress)
            if asked[name][3] and not done:
                batch.drop(name)
            elif done:
                found[name] = samplings[name].tokens
        assert batch.filled <= batch.size
        step += 1
    kept, latents = [n for n in range(len(asked)) if n in found], engine().plan.layout.loss_spans[0].segment.grid[0]
    assert {name for name, one in enumerate(asked) if not one[3]} <= set(kept)
    for name in kept:
        _, count, seed, _ = asked[name]
        np.testing.assert_array_equal(found[name], alone(count, seed))
        new = [high - low for low, high in (progress.latents for progress in seen[name])]
        # Rows that find no place wait for the end of the others, so that latent frames come anew.
        assert seen[name][-1].done == 1 and sum(new) in latents * np.arange(-(-count // batch.size), count + 1)


@pytest.mark.parametrize("devices, block", [(1, 3), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_those_who_come_later_share_loops_once_they_have_caught_up(devices, block):
    sample = SAMPLE.replace(devices=devices, block=block)
    one = engine(sample)
    batch, loops = Together(one, sample), one.programs.loops
    samplings = [batch.add(0, one.rows(inputs(1, 0), 1), 0)]
    batch.step()
    samplings.append(batch.add(1, one.rows(inputs(1, 1), 1), 1))
    steps = 0
    while batch.names:
        batch.step()
        steps += 1
    assert steps == loops  # Apart they would take 2 * loops - 1.
    for seed, sampling in enumerate(samplings):
        np.testing.assert_array_equal(sampling.tokens, one.sample(inputs(1, seed), 1, sample.replace(seed=seed)))


def test_frames_come_as_of_a_request_alone():
    batch = Together(engine(), SAMPLE)
    samplings = {n: batch.add(n, engine().rows(inputs(1, n), 1), n) for n in (0, 1)}
    frames = {0: [], 1: []}
    while batch.names:
        for name, progress, _ in batch.step():
            frames[name].append(samplings[name].frames(progress))
    for name, parts in frames.items():
        whole = engine().detokenize(alone(1, name)).video
        np.testing.assert_array_equal(np.concatenate([p for p in parts if p is not None], axis=1), whole)


def test_programs_of_any_size_are_refused():
    free = SAMPLE.replace(block=0)
    with pytest.raises(UserError, match="set SAMPLE.block"):
        Together(tiny.generator(free).engine(TASK, free), free)
