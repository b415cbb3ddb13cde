"""A sample's tokens depend on the seed, its row and what it is given: not on who else is sampled, where, or on how many
devices.  The three tests of batch invariance are those of SGLang: single, mixed, prefix."""

from __future__ import annotations

import functools
import types

import jax
import numpy as np
import pytest
import tiny

from poet.models import transformer
from poet.sampling.decode import Decoder, ModelPrograms
from poet.sampling.engine import Engine, Inputs, sample_tokens
from poet.sampling.generate import Generator
from poet.sampling.plans import DEFAULT_BATCH, Plan, Text, given_tokens
from poet.sampling.samplers import SamplingParams, Truncation
from poet.spec import SampleSpec, UserError
from poet.spec.vocabulary import Vocabulary
from poet.tasks.resolved import Resolved

SAMPLE = SampleSpec(temperature=1.3, top_k=20, guidance=2.0, seed=11)
TEXT = Text(*tiny.texts(8))
DTYPES = ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)]


@functools.cache
def programs(dtype: str) -> ModelPrograms:
    model = transformer.build(
        tiny.EXPERIMENT.model.replace(dtype=dtype), Vocabulary(tiny.EXPERIMENT.vocabulary), tiny.TEXT_WIDTH
    )
    plan = Plan(layout=tiny.layout_of("text_to_video"), guided=True, truncation=Truncation.of(SAMPLE))
    params = jax.jit(model.compute_params)(tiny.params())
    return ModelPrograms(Decoder(model, plan), params, tiny.TEXT_WIDTH, DEFAULT_BATCH if dtype == "bfloat16" else 0)


def engine(dtype: str) -> Engine:
    return Engine(programs(dtype), types.SimpleNamespace(detokenize=None), "text_to_video")


@functools.cache
def whole(dtype: str) -> np.ndarray:
    tokens = engine(dtype).sample(Inputs(text=TEXT), 8, SAMPLE)
    assert len({tuple(row) for row in tokens}) == 8
    return tokens


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count, batch", [(1, 8), (3, 8), (8, 3), (8, 1)])
def test_single_as_many_as_they_are_and_however_many_together(dtype, count, batch):
    text = TEXT.rows(np.arange(count))
    tokens = engine(dtype).sample(Inputs(text=text), count, SAMPLE, batch=batch)
    np.testing.assert_array_equal(tokens, whole(dtype)[:count])


@pytest.mark.parametrize("dtype", DTYPES)
def test_mixed_in_any_place_of_a_batch_and_in_any_company(dtype):
    """Rows in another order, beside repetitions and texts of others."""
    made = programs(dtype)
    order, rows = np.array([5, 1, 1, 7, 0, 3, 2, 6]), np.array([5, 1, 90, 7, 0, 91, 2, 6])
    given = given_tokens(made.plan, {"source": np.zeros((8, 1), np.int32)})
    texts = engine(dtype)._text_rows(Inputs(text=TEXT), order)
    tokens = sample_tokens(made, given, rows.astype(np.int32), SamplingParams.of(SAMPLE), texts)
    same = order == rows
    np.testing.assert_array_equal(tokens[same], whole(dtype)[order[same]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_prefix_candidates_share_one_prefill_and_are_those_of_each_alone(dtype):
    """Ten of one text, in two batches, take one prefill; a text among others gives the same."""
    made, calls = programs(dtype), []
    prefill, made._last = made.decoder.prefill, {}
    made.decoder.prefill = lambda *given: calls.append(1) or prefill(*given)
    try:
        tokens = engine(dtype).sample(Inputs(text=TEXT.rows(np.zeros(10, int))), 10, SAMPLE)
        assert len(calls) == 1
        mixed = engine(dtype).sample(Inputs(text=TEXT.rows(np.array([3, 0, 4]))), 3, SAMPLE)
        assert len(calls) == 4
    finally:
        made.decoder.prefill = prefill
    np.testing.assert_array_equal(tokens[0], whole(dtype)[0])
    np.testing.assert_array_equal(tokens[1], mixed[1])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_eight_devices_sample_what_one_does(dtype):
    """A block on each; in another order than on one device."""
    experiment = tiny.EXPERIMENT.replace(model=tiny.EXPERIMENT.model.replace(dtype=dtype))
    generator = Generator(Resolved(experiment), tiny.params(), {"video": tiny.video_tokenizer()})
    text, count = TEXT.rows(np.arange(20) % 8), 20
    found = {
        devices: generator.tokens("text_to_image", count, text=text, sample=SAMPLE.replace(devices=devices, block=3))
        for devices in (1, 8)
    }
    np.testing.assert_array_equal(found[8], found[1])
    with pytest.raises(UserError, match="SAMPLE.devices = 9: this process has 8"):
        generator.engine("text_to_image", SAMPLE.replace(devices=9))
