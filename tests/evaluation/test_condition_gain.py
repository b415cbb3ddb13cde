"""Condition gain: what is exchanged, what counts as copyable, and what a condition that is not seen is worth."""

from __future__ import annotations

import itertools
import math

import jax
import numpy as np
import pytest
import scipy.stats

from poet.distributed.mesh import AXES, Rules, build
from poet.evaluation import condition_gain, scores
from poet.evaluation.intervals import ratio_interval
from poet.evaluation.report import gain_view, tables
from poet.models.transformer import build_model
from poet.spec import (
    ClipSpec,
    DataSpec,
    EvalSpec,
    Experiment,
    MeshSpec,
    ModelSpec,
    TextSpec,
    UserError,
    VideoTokenizerSpec,
    VocabularySpec,
)
from poet.tasks.registry import TASKS
from poet.tasks.resolved import Resolved

CLIPS = 8
RUN = Experiment(
    clip=ClipSpec(frames=9, height=32, width=32),
    vocabulary=VocabularySpec(visual_bits=4, audio_codes=8, text_pieces=4),
    video_tokenizer=VideoTokenizerSpec(bits=4),
    text=TextSpec(length=4, width=8),
    model=ModelSpec(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, mlp_width=32, dtype="float32", remat="none"),
    data=DataSpec(mixture_rates={"stylization": 1.0, "frame_prediction": 1.0}),
    eval=EvalSpec(conditioning_frames=5, batch=4),
)
# Clips of four places; the captions of two neighbours are equal.
KEYS = [f"{place}/{i:03d}" for i, place in enumerate("aabbccdd")]
CAPTIONS = ["one", "one", "two", "one", "three", "four", "four", "five"]


def make_batch(task: str, seed: int = 0) -> dict[str, np.ndarray]:
    layout, rng = Resolved(RUN).layout(TASKS[task]), np.random.default_rng(seed)
    tokens = [rng.integers(s.ids.low, s.ids.high, (CLIPS, s.length)) for s in layout.segments]
    given = Resolved(RUN).conditioning_codes(TASKS[task], Resolved(RUN).eval_latents(TASKS[task]))
    batch = {
        "tokens": np.concatenate(tokens, axis=1).astype(np.int32),
        "known": np.tile(np.array(given, np.int32), (CLIPS, 1)),
    }
    if layout.text_span:
        batch["text_states"] = rng.normal(size=(CLIPS, 4, 8)).astype(np.float16)
        batch["text_length"] = np.full(CLIPS, 4, np.int32)
    return batch


def make_params() -> dict:
    return jax.device_get(jax.jit(build_model(Resolved(RUN)).init)(jax.random.key(1)))


def measured(task: str, params: dict, devices: int = 1, size: int = 4) -> dict:
    """(condition, stream) -> what `gains` finds, on so many devices."""
    declared, batch, layout = TASKS[task], make_batch(task), Resolved(RUN).layout(TASKS[task])
    shape = {"fsdp": devices} if devices < 8 else {"data": 2, "fsdp": 2, "tensor": 2}
    mesh = build(MeshSpec(**{a: 1 for a in AXES} | shape), jax.devices()[:devices])
    model = build_model(Resolved(RUN))
    with jax.set_mesh(mesh):
        found = condition_gain.gains(
            model,
            jax.device_put(params, Rules().shardings(mesh, model.axes())),
            batch,
            layout,
            condition_gain.kinds(Resolved(RUN), declared),
            condition_gain.partners(KEYS, CAPTIONS, np.ones(CLIPS, bool)),
            mesh,
            size=size,
        )
    return {(condition, stream): gain for condition, stream, gain in found}


def nats(gain: dict) -> np.ndarray:
    """What the exchange costs each clip."""
    return (gain["wrong_loss"] - gain["loss"]).sum(axis=1, dtype=np.float64)


def counts(gain: dict) -> np.ndarray:
    """Predicted tokens of each clip."""
    return gain["count"].sum(axis=1)


def test_every_task_names_each_condition_that_it_is_given() -> None:
    def names(task: str) -> list[str]:
        return [kind.name for kind in condition_gain.kinds(Resolved(RUN), TASKS[task])]

    assert names("unconditional") == []
    assert names("text_to_video") == ["text"]
    assert names("image_to_video") == ["text", "first frame"]
    assert names("frame_prediction") == ["first 5 frames"]
    assert names("inpainting") == ["clip with a hole"]
    assert names("stylization") == ["text", "flow and depth", "text alone", "flow and depth alone", "first frame"]
    assert names("image_to_video_bidirectional") == ["text", "first frame"]


def test_a_partner_is_another_clip_of_another_caption_and_place() -> None:
    found = condition_gain.partners(KEYS, CAPTIONS, np.ones(CLIPS, bool))
    places = [key[0] for key in KEYS]
    for own, other in enumerate(found):
        assert places[own] != places[other] and CAPTIONS[own] != CAPTIONS[other]
    assert found[0] == 2, "the next one that is fit"
    # One place, two captions; equal captions, two places; nothing that differs but the clip.
    assert condition_gain.partners(["a/1", "a/2", "a/3"], ["x", "x", "y"], np.ones(3, bool)).tolist() == [2, 2, 0]
    assert condition_gain.partners(["a/1", "a/2", "b/3"], ["x"] * 3, np.ones(3, bool)).tolist() == [2, 2, 0]
    assert condition_gain.partners(["a/1", "a/2"], ["x", "x"], np.ones(2, bool)).tolist() == [1, 0]
    silent = np.array([True, True, False])
    assert condition_gain.partners(["a/1", "a/2", "b/3"], ["x", "x", "y"], silent).tolist() == [1, 0, 0]


def test_one_kind_of_condition_is_exchanged_and_nothing_else() -> None:
    layout, batch = Resolved(RUN).layout(TASKS["stylization"]), make_batch("stylization")
    partners_N = np.roll(np.arange(CLIPS), -3)
    streams = layout.parse(batch["tokens"])
    given = batch["known"][0, 0]
    assert given == 16, "the first latent frame"
    for kind in condition_gain.kinds(Resolved(RUN), TASKS["stylization"]):
        made = condition_gain.exchanged(batch, partners_N, kind, layout)
        want = {name: codes.copy() for name, codes in streams.items()}
        states = batch["text_states"]
        if kind.name.startswith("text"):
            states = states[partners_N]
        elif kind.name.startswith("flow and depth"):
            want["video_in"] = streams["video_in"][partners_N]
        else:
            want["video"][:, :given] = streams["video"][partners_N, :given]
        np.testing.assert_array_equal(made["text_states"], states)
        for name, codes in layout.parse(made["tokens"]).items():
            np.testing.assert_array_equal(codes, want[name], err_msg=f"{kind.name}: {name}")


@pytest.mark.parametrize("task", ["stylization", "frame_prediction"])
def test_what_can_be_copied_by_plain_loops(task: str) -> None:
    layout, batch = Resolved(RUN).layout(TASKS[task]), make_batch(task)
    latents, *place = Resolved(RUN).format.video
    codes = layout.parse(batch["tokens"])
    video = codes["video"].reshape(CLIPS, latents, *place)
    given = Resolved(RUN).eval_latents(TASKS[task])
    for kind in condition_gain.kinds(Resolved(RUN), TASKS[task]):
        found = condition_gain.copyable(batch, kind, layout)
        if kind.text:
            assert found == {}
            continue
        mask = found["video"].reshape(video.shape)
        for n, t, *yx in itertools.product(range(CLIPS), range(latents), *map(range, place)):
            y, x = yx
            held = codes["video_in"].reshape(video.shape)[n, t, y, x] if kind.spans else video[n, given - 1, y, x]
            assert mask[n, t, y, x] == (video[n, t, y, x] == held)
        assert 0 < mask.mean() < 1
    hidden = dict(batch, tokens=batch["tokens"].copy())
    for span in layout.spans:
        if span.segment.stream == "video_in":
            hidden["tokens"][:, span.start : span.stop] = 16
            kind = condition_gain.Kind(name="hidden", spans=(span,))
            assert not condition_gain.copyable(hidden, kind, layout)["video"].any()


def test_a_condition_alone_is_scored_on_the_frames_that_are_given_beside_others() -> None:
    found = measured("stylization", make_params())
    beside, alone = (found[f"flow and depth{more}", "video"] for more in ("", " alone"))
    length = Resolved(RUN).layout(TASKS["stylization"]).streams["video"]
    assert (counts(alone) == length).all() and (counts(beside) == length - 16).all()
    np.testing.assert_array_equal(alone["loss"][:, 16:], found["text alone", "video"]["loss"][:, 16:])
    assert (alone["loss"][:, :16] > 0).all() and (beside["loss"][:, :16] == 0).all()


def test_a_condition_that_is_not_seen_is_worth_nothing_at_all() -> None:
    """Without attention a position sees itself alone: of the opening the one after it sees one code."""
    params = make_params()
    for key, gain in measured("stylization", params).items():
        assert np.abs(nats(gain)).max() > 0.01, key
    params["blocks"]["attention"]["out"] = np.zeros_like(params["blocks"]["attention"]["out"])
    deaf = measured("stylization", params)
    for condition in ("text", "flow and depth"):
        assert not nats(deaf[condition, "video"]).any(), condition
    opening = deaf["first frame", "video"]
    changed = opening["wrong_loss"] != opening["loss"]
    assert changed[:, 16].any() and not np.delete(changed, 16, axis=1).any()


def test_one_and_eight_devices_and_other_batches_agree() -> None:
    params = make_params()
    one, eight = measured("stylization", params), measured("stylization", params, devices=8)
    whole = measured("stylization", params, size=CLIPS)
    for key, gain in one.items():
        for other in (eight[key], whole[key]):
            np.testing.assert_allclose(nats(other), nats(gain), rtol=1e-3, atol=2e-4)
            np.testing.assert_array_equal(counts(other), counts(gain))


def test_rows_add_up_and_fit_the_terminal() -> None:
    found = measured("stylization", make_params())
    rows = [condition_gain.row("stylization", *names, gain)[0] for names, gain in found.items()]
    for row in rows:
        codes = 16 * (3 if "alone" in row["condition"] else 2)
        assert row["nats_per_clip"] == pytest.approx(codes * row["nats_per_token"]), "latents of 16 codes"
        assert row["nats_per_clip_low"] <= row["nats_per_clip"] <= row["nats_per_clip_high"]
        if row["copyable"] is not None:
            share = row["copyable"]
            whole = share * row["copyable_nats"] + (1 - share) * row["rest_nats"]
            assert whole == pytest.approx(row["nats_per_token"], abs=1e-6)
    long = [{**row, "task": "audio_video_continuation", "nats_per_clip": -612.345} for row in rows]
    text = tables.format_table(gain_view.terminal_rows(long))
    assert max(map(len, text.splitlines())) <= 110 and len(text.splitlines()) == 2 + len(rows)


# ------------------------------------------------------------------------------------ intervals


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = ratio_interval(values, np.ones(400), resamples=20_000)
    reach = scipy.stats.norm.ppf(0.975) * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - reach, abs=0.02)
    assert high == pytest.approx(values.mean() + reach, abs=0.02)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Ratios of sums whose counts differ from clip to clip."""
    rng, held = np.random.default_rng(1), 0
    for seed in range(200):
        counts = rng.integers(5, 20, 60)
        low, high = ratio_interval(rng.normal(0.7 * counts, np.sqrt(counts)), counts, resamples=300, seed=seed)
        held += low < 0.7 < high
    assert 0.89 < held / 200 < 0.99


def test_clips_without_a_token_do_not_count_and_one_clip_has_no_interval() -> None:
    sums, counts = np.array([1.0, 2.0, 4.0, 0.0]), np.array([1.0, 1.0, 2.0, 0.0])
    assert ratio_interval(sums, counts) == ratio_interval(sums[:3], counts[:3])
    assert ratio_interval(sums[2:], counts[2:]) is None


# --------------------------------------------------------------------------------------- scores


def test_scores_hold_what_was_measured_or_are_refused() -> None:
    gain = measured("stylization", make_params())["flow and depth", "video"]
    row, _ = condition_gain.row("stylization", "flow and depth", "video", gain)
    report = {
        "checkpoint": "/somewhere/lm_arenas",
        "step": 7,
        "split": "validation",
        "networks": {"video": "abc"},
        "metrics": {
            "condition_gain": {"rows": [row]},
            "likelihood": {"rows": [{"task": "stylization", "stream": "video", "loss_nats": 2.5, "tokens": 64}]},
        },
    }
    made = scores.record(report)
    assert (made["checkpoint"], made["step"]) == ("lm_arenas", 7)
    found = made["condition_gain"]["stylization"]["flow and depth"]["video"]
    assert found["nats_per_clip"] == {
        "value": row["nats_per_clip"],
        "low": row["nats_per_clip_low"],
        "high": row["nats_per_clip_high"],
    }
    assert found["copyable"]["share"] == row["copyable"] and found["clips"] == CLIPS
    assert made["likelihood"]["stylization"]["video"]["loss_nats"] == 2.5
    scores.check(report["metrics"], {})
    with pytest.raises(UserError, match="condition_gain: EVAL.gain_clips is 0"):
        scores.check(report["metrics"], {"condition_gain": "EVAL.gain_clips is 0"})
    with pytest.raises(UserError, match="likelihood: it is not among"):
        scores.check({"condition_gain": 0}, {})
