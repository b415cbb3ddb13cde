"""The loss against a float64 NumPy oracle."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poet.models import transformer
from poet.spec import ModelSpec, VocabularySpec
from poet.spec.vocabulary import Special, Vocabulary
from poet.tasks.layout import Format, build_layout
from poet.training import cross_entropy, losses

VOCABULARY = Vocabulary(VocabularySpec(visual_bits=4, audio_codes=8, text_pieces=4))
Z_LOSS = 1e-2
SPEC = ModelSpec(layers=1, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=16, dtype="float32", remat="none")
MODEL = transformer.build(SPEC, VOCABULARY, 8)
LAYOUT = build_layout(
    task_token=Special.TASK_VIDEO,
    text=False,
    condition=(),
    output=("video", "audio"),
    fmt=Format(video=(2, 2, 2), text_length=4, audio_frames=3),
    vocabulary=VOCABULARY,
)


@functools.cache
def params():
    """NumPy parameters whose logits are far from uniform."""
    with jax.ensure_compile_time_eval():  # The first caller may be under a trace.
        made = jax.device_get(jax.jit(MODEL.init)(jax.random.key(1)))
    tables = made["embedding"]["tables"]
    made["embedding"]["tables"] = jax.tree.map(lambda t: 5 * t, tables)
    return made


def make_batch(video, audio=(0, 0, 0)):
    """Three rows of which so many codes are given: of the video, and of every level of the audio."""
    levels = VOCABULARY.spec.audio_levels
    known = np.stack([video, *[audio] * levels], axis=1)
    rng = np.random.default_rng(0)
    tokens = np.concatenate(
        [rng.integers(s.ids.low, s.ids.high, (3, s.length)) for s in LAYOUT.segments], axis=1
    ).astype(np.int32)
    return {"tokens": jnp.asarray(tokens), "known": jnp.asarray(known, jnp.int32)}


def oracle(batch, vocabulary):
    """stream -> (objective, loss, correct, count), one position at a time, from the hidden states."""
    x = np.asarray(MODEL.hidden(params(), batch["tokens"], LAYOUT), np.float64)
    tables = params()["embedding"]["tables"]
    every = np.concatenate([np.asarray(tables[n], np.float64) for n in VOCABULARY.tables])
    tokens, known = np.asarray(batch["tokens"]), np.asarray(batch["known"])
    sums = {"video": np.zeros(4), "audio": np.zeros(4)}
    for b in range(tokens.shape[0]):
        for index, span in enumerate(LAYOUT.loss_spans):
            ids = span.segment.ids
            for p in range(span.start, span.stop):
                if p - span.start < known[b, index]:
                    continue
                logits = every @ x[b, p - LAYOUT.prefix_length]
                low = ids.low if vocabulary == "legal" else 0
                legal = logits[ids.low : ids.high] if vocabulary == "legal" else logits
                log_z = np.log(np.exp(legal - legal.max()).sum()) + legal.max()
                label = tokens[b, p] - low
                hit = float(legal.argmax() == label)
                loss = log_z - legal[label]
                sums[span.segment.stream] += [loss + Z_LOSS * log_z**2, loss, hit, 1]
    return sums


@pytest.mark.parametrize("budget", (2**28, 60))
@pytest.mark.parametrize("vocabulary", ("legal", "full"))
def test_sums_equal_float64(vocabulary, budget, monkeypatch):
    """Whole and chunked logits; rows with no, some and all tokens of the video known, and the
    opening of every level of the audio."""
    monkeypatch.setattr(cross_entropy, "LOGITS_BUDGET", budget)
    batch = make_batch([0, 3, 8], audio=[0, 1, 2])
    got = jax.jit(lambda b: losses.stream_sums(MODEL, params(), b, LAYOUT, loss_vocabulary=vocabulary, z_loss=Z_LOSS))(
        batch
    )
    want = oracle(batch, vocabulary)
    assert got.keys() == want.keys()
    for stream, sums in want.items():
        np.testing.assert_allclose(jax.tree.leaves(got[stream]), sums, rtol=2e-5)


def test_known_tokens_do_not_move_the_loss_of_earlier_positions():
    """The label of a known token is free: changing it alone leaves its own loss term at 0."""
    batch = make_batch([8, 8, 8])
    sums = losses.stream_sums(MODEL, params(), batch, LAYOUT)
    assert float(sums["video"].count) == 0 and float(sums["video"].loss) == 0
    metrics = losses.means(sums)
    assert float(metrics["loss"].value()) == pytest.approx(float(metrics["loss/audio"].value()))
    assert float(metrics["loss/video"].weight) == 0, "absent, not a loss of 0"


def test_objective_is_one_mean_over_the_batch():
    """Streams weigh by their tokens, not equally; the z-loss joins the objective only."""
    sums = {
        "video": cross_entropy.Sums(*map(jnp.float32, (33.5, 30.0, 2.0, 10.0))),
        "audio": cross_entropy.Sums(*map(jnp.float32, (3.5, 2.0, 1.0, 30.0))),
    }
    metrics, found = losses.means(sums), losses.total(sums)
    assert float(metrics["loss"].value()) == pytest.approx(32 / 40)
    assert float(found.objective / found.count) == pytest.approx(37 / 40)
    assert float(metrics["accuracy/video"].value()) == pytest.approx(0.2)


def test_padding_of_texts_and_of_captions_is_no_filling():
    """Two clips with texts of 1 and 9 (more than there is room for) of 4; captions of 3 and 0 of 5."""
    fmt = Format(video=(1, 1, 2), text_length=4, pieces_length=5)
    layout = build_layout(
        task_token=Special.TASK_VIDEO, text=True, condition=(), output=("pieces",), fmt=fmt, vocabulary=VOCABULARY
    )
    (span,) = layout.loss_spans
    tokens = np.zeros((2, layout.length), np.int32)
    tokens[:, span.start : span.stop] = span.segment.padding
    tokens[0, span.start : span.start + 3] = span.segment.ids.low + 3
    assert span.segment.padding != span.segment.ids.low + 3
    batch = {"tokens": jnp.asarray(tokens), "text_length": jnp.array([1, 9])}
    empty = (4 - 1) + 0 + (5 - 3) + 5
    assert float(losses.filled(batch, layout)) == pytest.approx(1 - empty / (2 * layout.length))
    assert float(losses.filled(make_batch([0, 3, 8]), LAYOUT)) == 1


# A factorised head has no softmax over all ids.
@pytest.mark.parametrize(
    "vocabulary, head",
    (pytest.param("legal", "full", marks=pytest.mark.slow), ("full", "full"), ("legal", "factorised")),
)
def test_tokens_add_up_to_the_sums(vocabulary, head):
    """Each clip scored alone, and the sums of a batch, against its tokens; what is given is 0."""
    model = transformer.build(SPEC.replace(visual_head=head), VOCABULARY, 8)
    values = jax.jit(model.init)(jax.random.key(3))
    batch = make_batch([0, 3, 8], audio=[0, 1, 2])
    run = jax.jit(functools.partial(losses.stream_sums, model, values, layout=LAYOUT, loss_vocabulary=vocabulary))
    score = functools.partial(losses.token_scores, model, values, layout=LAYOUT, loss_vocabulary=vocabulary)
    found = jax.jit(score)(batch)
    alone = [run({name: x[i : i + 1] for name, x in batch.items()}) for i in range(3)]
    for stream, sums in run(batch).items():
        spans = [s for s, at in zip(found, LAYOUT.loss_spans) if at.segment.stream == stream]
        for name in ("loss", "correct", "count"):
            per_clip = sum(np.asarray(getattr(s, name)).sum(axis=1) for s in spans)
            np.testing.assert_allclose(per_clip, [getattr(a[stream], name) for a in alone], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(per_clip.sum(), getattr(sums, name), rtol=1e-5)
    given = np.arange(8)[None] < np.array([0, 3, 8])[:, None]
    assert not np.asarray(found[0].loss)[given].any() and not np.asarray(found[0].count)[given].any()
    assert (np.asarray(found[0].loss)[~given] > 0).all()
