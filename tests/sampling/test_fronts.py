"""Sampling in fronts: the schedule, what every code sees, and that without overlap it is one code after the other."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "models"))

from attention_oracle import dense

from poet.models.layers import NORM_EPSILON
from poet.sampling.decode import Decoder, ModelPrograms
from poet.sampling.engine import sample_tokens
from poet.sampling.fronts import fronts
from poet.sampling.plans import Plan, given_tokens
from poet.sampling.requests import make_plan
from poet.sampling.samplers import SamplingParams, Truncation
from poet.spec import SampleSpec, UserError
from poet.tasks.registry import get_task
from poet.tasks.resolved import Resolved

GRID = (3, 4, 4)  # Of the tiny run.
HOT = SampleSpec(temperature=1.5)
LAGS = [(1, 0), (2, 0), (3, 5), (1, 1), (4, 9), (4, 0)]


def run(task, sample, lags, known=0, guided=False, head="full", programs=ModelPrograms):
    """Decodes two samples; returns (plan, tokens [2, S])."""
    layout = tiny.layout_of(task)
    plan = Plan(layout=layout, known=(known,), guided=guided, truncation=Truncation.of(sample), lags=lags)
    codes = np.random.default_rng(9).integers(0, 64, (2, known)).astype(np.int32)
    given = given_tokens(plan, {"source": np.zeros((2, 1), np.int32)}, codes)
    text = () if layout.text_span is None else tiny.texts(2 * plan.fan)
    made = programs(Decoder(tiny.model(head), plan), tiny.params(head))
    return plan, sample_tokens(made, given, np.arange(2), SamplingParams.of(sample), text)


@pytest.mark.parametrize("grid, lags", [*((GRID, lags) for lags in LAGS), ((1, 3, 5), (2, 0)), ((2, 1, 3), (1, 1))])
def test_a_schedule_samples_every_code_once_behind_what_it_waits_for(grid, lags):
    steps, order = fronts(grid, *lags)
    _, rows, columns = grid
    size = int(np.prod(grid))
    alone = (rows - 1) * lags[0] + columns
    for place in range(size):
        frame, row, column = np.unravel_index(place, grid)
        assert order[place] == frame * (lags[1] or alone) + row * lags[0] + column
    sampled = [(step, place) for step, places in enumerate(steps.sampled) for place in places if place < size]
    assert sorted(place for _, place in sampled) == list(range(size))
    assert all(order[place] == step for step, place in sampled)
    fed = [(s, p) for s, row in enumerate(zip(steps.inputs, steps.kept)) for p, kept in zip(*row) if kept]
    assert sorted(place for _, place in fed) == list(range(size)) and all(order[place] == s for s, place in fed)
    for step in range(len(steps.sampled) - 1):  # A state is for what the next step samples from it.
        for slot, place in enumerate(steps.sampled[step + 1]):
            if place < size:
                taken = steps.inputs[step, slot]
                assert steps.targets[step, slot] == place and order[taken] <= step and taken < place
                assert not any(order[other] <= step for other in range(taken + 1, place))


def test_a_clip_takes_as_many_steps_as_its_fronts():
    for lags, steps in {(1, 0): 155, (2, 28): 158, (16, 0): 1280, (1, 3): 43}.items():
        assert len(fronts((5, 16, 16), *lags).steps.sampled) == steps, lags
    plan, _ = Plan(layout=tiny.layout_of("text_to_video"), lags=(1, 0)), None
    assert plan.model_steps == 3 * 7 and len(plan.chunks) == 3
    assert len(Plan(layout=plan.layout, lags=(1, 4)).chunks) == 1


@pytest.mark.parametrize(
    "task, options",
    [
        ("text_to_video", {"guided": True, "head": "factorised"}),
        pytest.param("text_to_video", {"known": 16}, marks=pytest.mark.slow),
        ("text_to_image", {}),
    ],
)
def test_without_overlap_it_is_one_code_after_the_other(task, options):
    sample = SampleSpec(temperature=(1.5, 1.0, 0.8) if task == "text_to_video" else 1.2, top_k=20, guidance=3.0, seed=5)
    _, exact = run(task, sample, (0, 0), **options)
    for lags in ((4, 0), (4, 16)):
        np.testing.assert_array_equal(run(task, sample, lags, **options)[1], exact)
    assert np.any(run(task, sample, (1, 0), **options)[1] != exact)


def test_aligned_conditions_are_those_of_the_code_that_is_predicted():
    """Without overlap it is one code at a time; and a row that sees no more than before samples the same codes."""
    spec = dataclasses.replace(tiny.model().spec, aligned_conditions=True, condition_encoder=6)
    model, rng = dataclasses.replace(tiny.model(), spec=spec), np.random.default_rng(2)
    # As large as what codes embed to, so that it matters what a row has seen.
    params, few = tiny.params_of(model), {"aligned": 0.05 / 0.15, "conditions": 0.1}
    scaled = {name: jax.tree.map(lambda x, f=f: f * x, params["embedding"][name]) for name, f in few.items()}
    params = {**params, "embedding": {**params["embedding"], **scaled}}
    codes = {"source": np.zeros((2, 1), np.int32), "video_in": rng.integers(0, 64, (2, 48)).astype(np.int32)}
    found = {}
    for lags in ((0, 0), (4, 0), (2, 0)):
        plan = Plan(layout=tiny.layout_of("inpainting"), lags=lags)
        programs = ModelPrograms(Decoder(model, plan), params)
        drawn = sample_tokens(programs, given_tokens(plan, codes), np.arange(2), SamplingParams.of(HOT))
        found[lags] = plan.layout.parse(drawn)["video"]
    np.testing.assert_array_equal(found[4, 0], found[0, 0])
    np.testing.assert_array_equal(found[2, 0][:, :4], found[0, 0][:, :4])
    assert np.any(found[2, 0] != found[0, 0])


class BatchPrograms(ModelPrograms):
    """One prefill of a whole batch, and one loop for all that follows."""

    loops = 1

    def prefill(self, tokens_BxN, *text):
        return self.decoder.prefill(self.params, tokens_BxN, *text)

    def decode(self, loop, state, rows_B, sampling_params, forced_BxK):
        forced = (forced_BxK,) if self.plan.forced else ()
        return self.decoder.decode(self.params, *state, rows_B, sampling_params, *forced)


def test_frames_by_themselves_and_all_in_one_program_are_the_same():
    sample = SampleSpec(temperature=1.2, guidance=2.0)
    frames, whole = (
        run("text_to_video", sample, (2, 0), guided=True, programs=made)[1] for made in (ModelPrograms, BatchPrograms)
    )
    np.testing.assert_array_equal(frames, whole)


@functools.cache
def weights():
    return jax.tree.map(np.float64, tiny.params())


def normed(x, scale):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + NORM_EPSILON) * scale


def rotated(x, cos, sin):
    cos, sin = (table.reshape(len(x), *[1] * (x.ndim - 2), -1) for table in (cos, sin))
    first, second = np.split(x, 2, -1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def brute_force_logits(plan, tokens_S, span):
    """Logits [N, ids] of every code of a span in float64, from what the fronts declare it to see and nothing else.

    All that the model ever takes in is one list of elements, each with a place of its own, one that it predicts, and a
    row of a mask over the elements that were kept.
    """
    layout, model, order = plan.layout, tiny.model(), plan.fronts(span)
    given, begin = np.arange(plan.prefilled), span.start
    inputs, targets, kept = [*given], [*given + 1], [True] * begin
    step_of = [-1] * begin
    for step, (_, *front) in enumerate(zip(*order.steps)):
        for place, target, keep in zip(*front):
            if keep or target:  # The others are slots without a code.
                inputs.append(begin + place), targets.append(begin + target), kept.append(keep), step_of.append(step)
    inputs, targets, step_of = map(np.array, (inputs, targets, step_of))
    mask = kept & (inputs[None] < targets[:, None]) & (step_of[None] <= step_of[:, None])
    mask[: layout.prefix_length, : layout.prefix_length] = True
    table = np.float64(model._rotary(layout))
    x = np.float64(model._embed(tiny.params(), tokens_S[None], layout, None))[0][inputs]
    for number in range(model.spec.layers):
        block = jax.tree.map(lambda p, number=number: p[number], weights()["blocks"])
        part, h = block["attention"], normed(x, block["attention_norm"]["scale"])
        q = rotated(
            normed(np.einsum("ed,dkgh->ekgh", h, part["query"]), part["query_norm"]["scale"]), *table[0][:, targets - 1]
        )
        k = rotated(normed(np.einsum("ed,dkh->ekh", h, part["key"]), part["key_norm"]["scale"]), *table[1][:, inputs])
        v = np.einsum("ed,dkh->ekh", h, part["value"])
        x = x + np.einsum("ekgh,kghd->ed", dense(q[None], k[None], v[None], mask[None])[0], part["out"])
        part, h = block["mlp"], normed(x, block["mlp_norm"]["scale"])
        gate = h @ part["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ part["up"])) @ part["down"]
    logits = normed(x, weights()["head"]["norm"]["scale"]) @ np.float64(model.head(tiny.params(), span.segment.ids)).T
    found = np.zeros((len(order.order), logits.shape[1]))
    for target, step, row in zip(targets - begin, step_of, logits):
        if 0 <= target < len(found) and order.order[target] == step + 1:
            found[target] = row
    return found


@pytest.mark.parametrize("lags", LAGS)
def test_every_code_sees_exactly_what_was_sampled_before_it(lags):
    """Greedy codes are those of the brute-force logits."""
    plan, tokens = run("unconditional", SampleSpec(temperature=0.0), lags)
    (span,) = plan.layout.loss_spans
    for row in tokens:
        logits = brute_force_logits(plan, row, span)
        ranked = np.sort(logits, -1)
        assert (ranked[:, -1] - ranked[:, -2]).min() > 1e-4, "too close to tell"
        np.testing.assert_array_equal(logits.argmax(-1) + span.segment.ids.low, row[span.start : span.stop])


def test_a_task_without_pictures_and_momentum_are_refused():
    resolved = Resolved(tiny.WITH_SOUND)
    with pytest.raises(UserError, match="row_lag = 1: task text_to_audio makes no pictures"):
        make_plan(resolved, get_task("text_to_audio"), SampleSpec(row_lag=1), 0)
    with pytest.raises(UserError, match="frame_lag.*needs a row_lag"):
        SampleSpec(frame_lag=3)
    with pytest.raises(UserError, match="guidance_momentum.*row_lag samples together"):
        SampleSpec(row_lag=1, guidance_momentum=0.5)


@pytest.mark.parametrize(
    "lags, said",
    [((5, 0), "row_lag = 5: .*4 codes; give 1..4"), ((2, 11), "frame_lag = 11: .*takes 10 steps; give 1..10")],
)
def test_lags_beyond_the_grid_are_refused_before_any_program(lags, said):
    sample = SampleSpec(row_lag=lags[0], frame_lag=lags[1])
    with pytest.raises(UserError, match=said):
        make_plan(Resolved(tiny.WITH_SOUND), get_task("text_to_video"), sample, 0)
    with pytest.raises(UserError, match=said):
        fronts(GRID, *lags)
    make_plan(Resolved(tiny.WITH_SOUND), get_task("text_to_video"), SampleSpec(row_lag=2, frame_lag=10), 0)
