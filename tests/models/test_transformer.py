"""The prefix LM: what each position may depend on, cached decoding, and its sizes."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poet.models import transformer
from poet.runs import assets
from poet.spec import ModelSpec, UserError, VocabularySpec, config
from poet.spec.vocabulary import Special, Vocabulary
from poet.tasks.layout import Format, build_layout

VOCABULARY = Vocabulary(VocabularySpec(visual_bits=5, audio_codes=16, text_pieces=8))
SPEC = ModelSpec(
    layers=2,
    width=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    dtype="float32",
    remat="none",
    aligned_conditions=True,
    condition_encoder=6,
)
TEXT_WIDTH = 12
MODEL = transformer.build(SPEC, VOCABULARY, TEXT_WIDTH)


def make_layout(text, condition, output):
    return build_layout(
        task_token=Special.TASK_VIDEO,
        text=text,
        condition=condition,
        output=output,
        fmt=Format(video=(2, 2, 3), text_length=4, audio_frames=3),
        vocabulary=VOCABULARY,
    )


LAYOUTS = {
    "text_to_video": make_layout(True, (), ("video",)),
    "text_to_image": make_layout(True, (), ("image",)),
    "video_to_video_and_audio": make_layout(False, ("video",), ("video", "audio")),
}


@functools.cache
def params():
    """NumPy parameters: embeddings so large that every token matters, and what begins as 0 is not 0."""
    with jax.ensure_compile_time_eval():  # The first caller may be under a trace.
        made = jax.device_get(jax.jit(MODEL.init)(jax.random.key(0)))
    tables = jax.tree.map(lambda t: 20 * t, made["embedding"]["tables"])
    made["embedding"]["tables"] = tables
    rng, conditions = np.random.default_rng(4), made["embedding"]["conditions"]
    made["embedding"]["aligned"] = rng.normal(size=(SPEC.width, SPEC.width)).astype(np.float32)
    for name in ("picture", "sound"):
        conditions[name] = rng.normal(size=conditions[name].shape).astype(np.float32)
    return made


def make_inputs(layout, batch=2):
    rng = np.random.default_rng(3)
    tokens = np.concatenate(
        [rng.integers(s.ids.low, s.ids.high, (batch, s.length)) for s in layout.segments], axis=1
    ).astype(np.int32)
    for span in (s for s in layout.spans if s.segment.may_hide):
        tokens[:, span.start + 1 : span.stop : 4] = Special.HIDDEN
    text = None
    if layout.text_span:
        states = rng.normal(size=(batch, 4, TEXT_WIDTH)).astype(np.float32)
        text = states, np.arange(4)[None] < np.array([[2], [0]])
    return tokens, text


@functools.cache
def hidden_of(name):
    return jax.jit(lambda tokens, text: MODEL.hidden(params(), tokens, LAYOUTS[name], text))


def perturbed(layout, tokens, position):
    segment = next(s.segment for s in layout.spans if s.start <= position < s.stop)
    changed = tokens.copy()
    size = segment.ids.size
    changed[:, position] = segment.ids.low + (tokens[:, position] - segment.ids.low + 1) % size
    return changed


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_output_depends_on_exactly_what_precedes_it(name):
    layout = LAYOUTS[name]
    tokens, text = make_inputs(layout)
    base = hidden_of(name)(tokens, text)
    assert base.shape == (2, layout.output_length, SPEC.width)
    free = [s for s in layout.spans if not s.segment.forced]
    for position in {p for s in free for p in (s.start, (s.start + s.stop) // 2, s.stop - 1)}:
        moved = hidden_of(name)(perturbed(layout, tokens, position), text)
        change = np.abs(moved - base).max(axis=(0, 2))
        first = max(position - layout.prefix_length + 1, 0)
        np.testing.assert_array_equal(change[:first], 0)
        assert np.all(change[first:] > 1e-5), position


def test_given_codes_and_hidden_cells_are_told_apart_from_what_is_drawn():
    """One vector is added to every given code, another stands where none is given."""
    layout = LAYOUTS["video_to_video_and_audio"]
    tokens, _ = make_inputs(layout)
    embedded = np.asarray(MODEL._embed(params(), tokens, layout, None))
    given, none = params()["embedding"]["markers"]
    rows = params()["embedding"]["tables"]["visual"] * SPEC.width**0.5
    condition, drawn = (next(s for s in layout.spans if s.segment.stream == n) for n in ("video_in", "video"))
    codes = tokens - VOCABULARY.visual.low
    for position in range(condition.start, condition.stop):
        for row in range(2):
            hidden = tokens[row, position] == Special.HIDDEN
            expected = none if hidden else rows[codes[row, position]] + given
            np.testing.assert_allclose(embedded[row, position], expected, atol=1e-4)
    np.testing.assert_allclose(embedded[:, drawn.start], rows[codes[:, drawn.start]], atol=1e-4)


def test_a_query_stands_at_the_place_of_the_token_that_it_predicts():
    layout = LAYOUTS["video_to_video_and_audio"]
    queries, keys = np.asarray(MODEL._rotary(layout)).swapaxes(1, 2)  # [S, 2, pairs] each.
    first = layout.prefix_length - 1
    np.testing.assert_array_equal(queries[:first], keys[:first])
    np.testing.assert_array_equal(queries[first:-1], keys[first + 1 :])
    own = transformer.build(SPEC.replace(query_place="own"), VOCABULARY, TEXT_WIDTH)._rotary(layout)
    np.testing.assert_array_equal(own[0], own[1])
    # So the same place of the clip, where it is given and where it is predicted, is at distance 0.
    condition, drawn = (next(s for s in layout.spans if s.segment.stream == n) for n in ("video_in", "video"))
    np.testing.assert_array_equal(queries[drawn.start - 1 : drawn.stop - 1], keys[condition.start : condition.stop])


def test_a_condition_is_added_where_its_place_is_predicted():
    layout, (tokens, _) = LAYOUTS["video_to_video_and_audio"], make_inputs(LAYOUTS["video_to_video_and_audio"])
    embedded = np.asarray(MODEL._embed(params(), tokens, layout, None), np.float64)
    model = transformer.build(SPEC.replace(condition_encoder=0), VOCABULARY, TEXT_WIDTH)
    inputs, _ = model._residual(params(), tokens[:, :-1], layout, None, layout.length)
    places, expected = layout.positions(), embedded.copy()
    condition, output = (next(s for s in layout.spans if s.segment.stream == n) for n in ("video_in", "video"))
    for position in range(output.start, output.stop):
        given = [p for p in range(condition.start, condition.stop) if (places[p] == places[position]).all()]
        expected[:, position - 1] += embedded[:, given].sum(1) @ params()["embedding"]["aligned"].astype(np.float64)
    np.testing.assert_allclose(inputs, expected[:, :-1], atol=1e-3)


@pytest.mark.parametrize("field, name", [("aligned_conditions", "aligned"), ("condition_encoder", "conditions")])
def test_an_added_condition_changes_nothing_at_first(field, name):
    layout, (tokens, _) = LAYOUTS["video_to_video_and_audio"], make_inputs(LAYOUTS["video_to_video_and_audio"])
    weights = MODEL.init(jax.random.key(1))
    without = transformer.build(SPEC.replace(**{field: type(getattr(SPEC, field))()}), VOCABULARY, TEXT_WIDTH)
    plain = {**weights, "embedding": {k: v for k, v in weights["embedding"].items() if k != name}}
    jax.tree.map(np.testing.assert_array_equal, without.init(jax.random.key(1)), plain)
    hidden = MODEL.hidden(weights, tokens, layout), without.hidden(plain, tokens, layout)
    np.testing.assert_array_equal(*hidden)


def test_a_prefix_position_reads_later_prefix_positions():
    """Full attention in the prefix: its last position alone is not enough to carry the change."""
    layout = LAYOUTS["video_to_video_and_audio"]
    tokens, _ = make_inputs(layout)
    start = next(s.start for s in layout.spans if s.segment.stream == "video_in")

    def states(tokens):
        embedded = MODEL._embed(params(), tokens, layout, None)
        return MODEL._forward(params(), embedded, layout, None, keep_keys=False)[0][:, start]

    assert np.abs(states(tokens) - states(perturbed(layout, tokens, start + 5))).max() > 1e-5


def test_text_counts_only_where_its_mask_says_so():
    layout = LAYOUTS["text_to_video"]
    tokens, (states, mask) = make_inputs(layout)
    hidden = hidden_of("text_to_video")
    base = hidden(tokens, (states, mask))
    padding = np.where(mask[..., None], states, np.nan)
    np.testing.assert_array_equal(hidden(tokens, (padding, mask)), base)
    moved = hidden(tokens, (states + mask[..., None], mask))
    assert np.abs(moved - base)[0].max() > 1e-4
    np.testing.assert_array_equal(moved[1], base[1])


def test_a_text_layout_without_text_is_refused():
    tokens, _ = make_inputs(LAYOUTS["text_to_video"])
    with pytest.raises(UserError, match="text"):
        MODEL.hidden(params(), tokens, LAYOUTS["text_to_video"])


@pytest.mark.parametrize("name, known", [("text_to_video", 0), ("text_to_video", 6), ("video_to_video_and_audio", 1)])
def test_cached_decoding_equals_the_full_forward_pass(name, known):
    layout = LAYOUTS[name]
    tokens, text = make_inputs(layout)
    want = hidden_of(name)(tokens, text)
    given = layout.prefix_length + known

    @jax.jit
    def decode_all(tokens, text):
        cache, x = MODEL.prefill(params(), tokens[:, :given], layout, text, layout.length)
        states = [x[None]]
        for span in layout.spans:
            start, stop = max(span.start, given), min(span.stop, layout.length - 1)

            def body(cache, position, ids=span.segment.ids):
                return MODEL.decode(params(), cache, tokens[:, position], position, layout, ids)

            if start < stop:
                cache, xs = jax.lax.scan(body, cache, jnp.arange(start, stop))
                states.append(xs)
        return jnp.concatenate(states).swapaxes(0, 1)

    np.testing.assert_allclose(decode_all(tokens, text), want[:, known:], atol=1e-5)


def test_prefill_must_hold_the_prefix():
    layout = LAYOUTS["text_to_video"]
    tokens, text = make_inputs(layout)
    with pytest.raises(UserError, match="prefix"):
        MODEL.prefill(params(), tokens[:, :3], layout, text, layout.length)


def test_logits_of_a_level_are_its_rows():
    level = VOCABULARY.audio(2)
    x = np.random.default_rng(0).normal(size=(2, SPEC.width)).astype(np.float32)
    rows = np.asarray(params()["embedding"]["tables"]["audio"], np.float64)[32:48]
    np.testing.assert_allclose(MODEL.logits(params(), x, level), x @ rows.T, atol=1e-5)


def gradient_under(policy):
    """A function of parameters: the gradient of a loss of the whole forward pass."""
    layout = LAYOUTS["text_to_image"]
    tokens, text = make_inputs(layout)
    model = transformer.build(SPEC.replace(remat=policy), VOCABULARY, TEXT_WIDTH)
    return jax.jit(jax.grad(lambda p: jnp.sum(model.hidden(p, tokens, layout, text) ** 3)))


@pytest.fixture(scope="module")
def kept_gradient():
    return gradient_under("none")(params())


@pytest.mark.parametrize(
    "remat", ("dots", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("offload", "full")))
)
def test_remat_changes_memory_not_gradients(remat, kept_gradient):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        gradient_under(remat)(params()),
        kept_gradient,
    )
    traced = str(gradient_under(remat).trace(params()).jaxpr)
    assert ("<host>" in traced) == (remat == "offload")


def test_axes_name_every_dim():
    leaves = jax.tree.leaves(MODEL.abstract())
    axes = jax.tree.leaves(MODEL.axes(), is_leaf=lambda a: isinstance(a, tuple))
    assert [leaf.ndim for leaf in leaves] == [len(a) for a in axes]
    assert jax.tree.structure(MODEL.abstract()) == jax.tree.structure(
        MODEL.axes(), is_leaf=lambda a: isinstance(a, tuple)
    )


# Parameters of the blocks, and of the whole with 300,000 ids and 2048-wide text states.
SIZES = {
    "tiny": ((1.0e6, 1.1e6), None, 4),
    "300m": ((0.29e9, 0.32e9), (0.61e9, 0.62e9), 8),
    "1b": ((1.0e9, 1.2e9), (1.72e9, 1.75e9), 8),
    "8b": ((6.9e9, 8.0e9), (8.2e9, 8.3e9), 8),
}


@pytest.mark.parametrize("size", SIZES)
def test_shipped_sizes(size):
    spec = config.load([str(assets.root() / "gin" / "models" / f"{size}.gin")]).model
    blocks, total, tensor = SIZES[size]
    abstract = transformer.build(spec, Vocabulary(), 2048).abstract()
    count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    assert blocks[0] <= count(abstract["blocks"]) <= blocks[1]
    assert total is None or total[0] <= count(abstract) <= total[1]
    assert spec.kv_heads % tensor == spec.mlp_width % tensor == 0
