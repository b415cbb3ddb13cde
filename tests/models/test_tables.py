"""Visual codes in two factors: a distribution over codes, by hand in float64, and its gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poet.models import tables, transformer
from poet.sampling import samplers
from poet.spec import Experiment, ModelSpec, SampleSpec, UserError, VideoTokenizerSpec, VocabularySpec
from poet.spec.vocabulary import Vocabulary
from poet.training import losses

BITS, LEADING_BITS, WIDTH = 5, 2, 8
SPEC = ModelSpec(
    layers=1,
    width=WIDTH,
    heads=1,
    kv_heads=1,
    head_dim=8,
    mlp_width=8,
    dtype="float32",
    visual_head="factorised",
    visual_leading=LEADING_BITS,
)
VOCABULARY = Vocabulary(VocabularySpec(visual_bits=BITS, audio_codes=4, text_pieces=4))
MODEL = transformer.build(SPEC, VOCABULARY, 8)
CODES = 2**BITS


@functools.cache
def params():
    """Tables of unit variance, so that probabilities differ."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), MODEL.abstract())


def log_likelihood(x_D: np.ndarray) -> np.ndarray:
    """log p of every code after state x, float64 [2^bits]."""
    shared, head = params()["embedding"]["tables"], params()["head"]["tables"]
    leading, rest, given_rows = (
        np.asarray(t, np.float64) for t in (shared["visual_leading"], shared["visual_rest"], head["visual_given"])
    )
    codes = np.arange(CODES)
    first = log_softmax(leading @ x_D)
    second = np.stack([log_softmax(rest @ (x_D + row)) for row in given_rows])
    return first[codes // len(rest)] + second[codes // len(rest), codes % len(rest)]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    peak = logits.max()
    return logits - peak - np.log(np.exp(logits - peak).sum())


def sums(p, x_BxNxD, labels_BxN, weights_BxN):
    ids = VOCABULARY.visual
    return losses.chain_sums(MODEL, p, x_BxNxD, labels_BxN, weights_BxN, ids, z_loss=0.0)[0]


def test_the_loss_of_every_code_is_its_log_likelihood():
    """So they are a distribution, and the label is correct that greedy decoding draws."""
    x_D = np.random.default_rng(1).normal(size=WIDTH).astype(np.float32)
    want = log_likelihood(x_D.astype(np.float64))
    assert np.exp(want).sum() == pytest.approx(1) and np.exp(want).max() > 4 / CODES
    x_BxNxD = jnp.broadcast_to(x_D, (1, CODES, WIDTH))
    labels = VOCABULARY.visual.low + jnp.arange(CODES)[None]
    one = jax.jit(lambda weights: sums(params(), x_BxNxD, labels, weights))
    found = [one(jnp.eye(CODES)[i : i + 1]) for i in range(CODES)]
    np.testing.assert_allclose([-float(s.loss) for s in found], want, rtol=1e-4)
    np.testing.assert_allclose([float(s.count) for s in found], 1)
    greedy = np.flatnonzero([float(s.correct) for s in found])
    parts = want.reshape(2**LEADING_BITS, -1)
    first = int(np.exp(parts).sum(1).argmax())
    assert greedy.tolist() == [first * parts.shape[1] + int(parts[first].argmax())]


def test_gradients_equal_those_of_whole_logits():
    """Of states and of every table; tied rows have one from each use."""
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(2, 6, WIDTH)), jnp.float32)
    labels = jnp.asarray(VOCABULARY.visual.low + rng.integers(0, CODES, (2, 6)), jnp.int32)
    weights = jnp.asarray(rng.integers(0, 2, (2, 6)), jnp.float32)

    def embedded(p, x):
        """The codes' own rows join the states, as they do in the model."""
        factors = MODEL.factors(VOCABULARY.visual)
        return x + tables.embed(SPEC, p["embedding"], factors, labels, jnp.float32)

    def ours(p, x):
        return sums(p, embedded(p, x), labels, weights).objective

    def whole(p, x):
        x = embedded(p, x)
        shared, given_rows = p["embedding"]["tables"], p["head"]["tables"]["visual_given"]
        codes, rest = labels - VOCABULARY.visual.low, shared["visual_rest"].shape[0]
        leading = jax.nn.log_softmax(x @ shared["visual_leading"].T)
        after = jax.nn.log_softmax((x + given_rows[codes // rest]) @ shared["visual_rest"].T)
        picked = [(leading, codes // rest), (after, codes % rest)]
        log_p = sum(jnp.take_along_axis(p, i[..., None], -1)[..., 0] for p, i in picked)
        return -jnp.sum(log_p * weights)

    got, want = (jax.jit(jax.grad(f, argnums=(0, 1)))(params(), x) for f in (ours, whole))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=1e-4), got, want)
    assert all(np.abs(got[0]["embedding"]["tables"][name]).max() > 0.1 for name in tables.FACTORS)


@given(bits=st.integers(2, 18), data=st.data())
def test_factors_recombine_to_the_id(bits, data):
    leading = data.draw(st.integers(1, bits - 1))
    vocabulary = Vocabulary(VocabularySpec(visual_bits=bits))
    ids = vocabulary.visual
    factors = tables.factors(SPEC.replace(visual_leading=leading), vocabulary, ids)
    tokens = np.array(data.draw(st.lists(st.integers(ids.low, ids.high - 1), min_size=1)))
    parts = factors.split(tokens)
    for each, part in zip(factors.ranges, parts, strict=True):
        assert np.all((each.low <= part) & (part < each.high))
    np.testing.assert_array_equal(factors.join(parts), tokens)
    assert [part.size for part in factors.ranges] == [2**leading, 2 ** (bits - leading)]


def test_other_ids_are_drawn_whole():
    for ids in (VOCABULARY.audio(1), VOCABULARY.text, VOCABULARY.source):
        assert MODEL.factors(ids).ranges == (ids,)


def test_factors_of_one_position_have_noise_of_their_own():
    """With flat logits every pair is as likely; the same noise twice would draw equal ones."""
    keys = samplers.row_keys(jnp.uint32(0), jnp.arange(3200))
    flat, sampling_params = jnp.zeros((3200, 4)), samplers.SamplingParams.of(SampleSpec())
    first, second = (
        samplers.sample(flat, samplers.factor_keys(keys, n), 5, sampling_params, samplers.Truncation()) for n in (0, 1)
    )
    counts = np.bincount(np.asarray(first) * 4 + np.asarray(second), minlength=16)
    chi_squared = np.sum((counts - 200.0) ** 2 / 200)
    assert chi_squared < 37.7  # 0.999 quantile with 15 degrees of freedom.


@pytest.mark.parametrize(
    "model, train, message",
    [
        ({"visual_leading": 3}, {}, "read with visual_head='factorised' alone"),
        ({"visual_head": "factorised", "visual_leading": 6}, {}, "leaves no two factors: expected 1..5"),
        ({"visual_head": "factorised"}, {"loss_vocabulary": "full"}, "needs a row for every id"),
        ({"visual_head": "halves"}, {}, "allowed: full, factorised"),
    ],
)
def test_what_cannot_be_is_refused(model, train, message):
    run = Experiment(vocabulary=VocabularySpec(visual_bits=6), video_tokenizer=VideoTokenizerSpec(bits=6))
    with pytest.raises(UserError, match=message):
        run.replace(model=run.model.replace(**model), train=run.train.replace(**train))


@pytest.mark.parametrize("head, name, bits", [("full", "visual", 9), ("factorised", "visual_rest", 5)])
def test_rows_of_codes_begin_as_far_apart_as_their_bits(head, name, bits):
    spec = SPEC.replace(width=256, visual_head=head, visual_leading=0 if head == "full" else 4)
    vocabulary = Vocabulary(VocabularySpec(visual_bits=9, audio_codes=4, text_pieces=4))

    def rows(**changes) -> np.ndarray:
        made = transformer.build(spec.replace(**changes), vocabulary, 8).init(jax.random.key(0))
        return np.asarray(made["embedding"]["tables"][name], np.float64)

    found, plain = rows(), rows(code_rows="random")
    assert found.std() == pytest.approx(256**-0.5, rel=0.1) and plain.std() == pytest.approx(256**-0.5, rel=0.1)
    ids = np.arange(len(found))
    apart = np.array([bin(i ^ j).count("1") for i in ids for j in ids])
    square = ((found[:, None] - found[None]) ** 2).sum(-1).ravel()
    means = [square[apart == n].mean() for n in range(1, bits + 1)]
    # 4 / bits for each bit that differs, of nine tenths of the variance, and the rows' own tenth twice.
    np.testing.assert_allclose(means, [0.9 * 4 * n / bits + 0.2 for n in range(1, bits + 1)], rtol=0.25)
    away = ((plain[:, None] - plain[None]) ** 2).sum(-1).ravel()[apart > 0]
    assert away.std() < 0.15 * away.mean(), "at random all are equally far"
