"""The loss against a float64 NumPy oracle."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poet.models import transformer
from poet.specs import ModelSpec, VocabularySpec
from poet.tasks.layout import Format, build_layout
from poet.training import losses
from poet.vocabulary import Special, Vocabulary

VOCABULARY = Vocabulary(VocabularySpec(visual_bits=4, audio_codes=8, text_pieces=4))
SPEC = ModelSpec(
    layers=1, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=16, dtype="float32", remat="none"
)
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
    made["head"]["tables"] = jax.tree.map(lambda t: 30 * t, made["head"]["tables"])
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
    """stream -> (loss, z, correct, count), one position at a time, from the hidden states."""
    x = np.asarray(MODEL.hidden(params(), batch["tokens"], LAYOUT), np.float64)
    tables = params()["head"]["tables"]
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
                sums[span.segment.stream] += [log_z - legal[label], log_z**2, hit, 1]
    return sums


@pytest.mark.parametrize("budget", (2**28, 60))
@pytest.mark.parametrize("vocabulary", ("legal", "full"))
def test_sums_equal_float64(vocabulary, budget, monkeypatch):
    """Whole and chunked logits; rows with no, some and all tokens of the video known, and the
    opening of every level of the audio."""
    monkeypatch.setattr(losses, "LOGITS_BUDGET", budget)
    batch = make_batch([0, 3, 8], audio=[0, 1, 2])
    got = jax.jit(
        lambda b: losses.stream_sums(MODEL, params(), b, LAYOUT, loss_vocabulary=vocabulary)
    )(batch)
    want = oracle(batch, vocabulary)
    assert got.keys() == want.keys()
    for stream, sums in want.items():
        np.testing.assert_allclose(jax.tree.leaves(got[stream]), sums, rtol=2e-5)


def test_chunked_gradients_equal_whole(monkeypatch):
    batch = make_batch([0, 3, 8])

    def gradient(budget):
        monkeypatch.setattr(losses, "LOGITS_BUDGET", budget)
        loss = lambda p: losses.objective(losses.stream_sums(MODEL, p, batch, LAYOUT), 1e-2)[0]
        return jax.jit(jax.grad(loss))(params())

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        gradient(60), gradient(2**28),
    )


def test_full_softmax_equals_legal_where_other_ids_cannot_occur():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 4)), jnp.float32)
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)), jnp.float32)
    labels = jnp.array([[10, 11, 12, 15, 13]])
    x = x.at[..., 0].set(1.0)
    impossible = jnp.zeros((10, 4)).at[:, 0].set(-1e4)
    alone = losses.cross_entropy(x, [(10, rows)], labels)
    both = losses.cross_entropy(x, [(0, impossible), (10, rows)], labels)
    for a, b in zip(alone, both):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_known_tokens_do_not_move_the_loss_of_earlier_positions():
    """The label of a known token is free: changing it alone leaves its own loss term at 0."""
    batch = make_batch([8, 8, 8])
    sums = losses.stream_sums(MODEL, params(), batch, LAYOUT)
    assert float(sums["video"].count) == 0 and float(sums["video"].loss) == 0
    loss, metrics = losses.objective(sums, 0.0)
    assert float(loss) == pytest.approx(float(metrics["loss/audio"]))
    assert float(metrics["loss/video"]) == 0


def test_objective_is_one_mean_over_the_batch():
    """Streams weigh by their tokens, not equally; the z-loss joins the objective only."""
    sums = {
        "video": losses.Sums(*map(jnp.float32, (30.0, 7.0, 2.0, 10.0))),
        "audio": losses.Sums(*map(jnp.float32, (2.0, 3.0, 1.0, 30.0))),
    }
    loss, metrics = losses.objective(sums, 0.5)
    assert float(metrics["loss"]) == pytest.approx(32 / 40)
    assert float(loss) == pytest.approx((32 + 0.5 * 10) / 40)
    assert float(metrics["accuracy/video"]) == pytest.approx(0.2)


@pytest.mark.parametrize("length, per_position", ((1280, 4 * 2**18), (106, 2**26), (7, 2**30)))
def test_chunks_divide_the_span_and_fit(length, per_position):
    chunks = losses.chunk_count(length, per_position)
    assert length % chunks == 0
    assert length // chunks * per_position <= losses.LOGITS_BUDGET or chunks == length
