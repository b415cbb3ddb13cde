"""Cached decoding against full recomputation, and what every decoded sequence must hold."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from poet.distributed import mesh as mesh_lib
from poet.distributed.mesh import batch_sharding
from poet.models.transformer import UNROLLED_LAYERS
from poet.sampling.decode import Decoder, ModelPrograms
from poet.sampling.engine import sample_tokens
from poet.sampling.plans import Plan, given_tokens
from poet.sampling.samplers import SamplingParams, Truncation
from poet.spec import MeshSpec, SampleSpec, UserError
from poet.spec.vocabulary import Special, Vocabulary
from poet.tasks.layout import Format, build_layout

GREEDY = SampleSpec(temperature=0.0)
LATENT = 16  # Codes of one latent frame of the tiny run.


def conditioning_codes(batch: int, count: int) -> np.ndarray:
    return np.random.default_rng(9).integers(0, 64, (batch, count)).astype(np.int32)


def run(task, sample, *, batch=2, known=0, guided=False, rows=None, text=None, head="full"):
    """Decodes; returns (plan, tokens [B, S])."""
    layout = tiny.layout_of(task)
    plan = Plan(layout=layout, known=(known,), guided=guided, truncation=Truncation.of(sample))
    source = {"source": np.zeros((batch, 1), np.int32)}
    given = given_tokens(plan, source, conditioning_codes(batch, known))
    if layout.text_span is not None and text is None:
        text = tiny.texts(batch * plan.fan)
    rows = np.arange(batch) if rows is None else rows
    sampling_params = SamplingParams.of(sample)
    programs = ModelPrograms(Decoder(tiny.model(head), plan), tiny.params(head))
    return plan, sample_tokens(programs, given, rows, sampling_params, text or ())


def plainly(guidance):
    """Guidance by its formula, as `naive_greedy` takes it."""
    return lambda cond, uncond, *_: uncond + np.float32(guidance) * (cond - uncond)


def naive_greedy(plan, given_BxG, text, guide=None, head="full"):
    """Greedy decoding that recomputes the whole sequence for every token.

    `guide` takes the logits of both branches, the number of the factor, and whether a latent frame begins.
    """
    model, params, layout = tiny.model(head), tiny.params(head), plan.layout
    if text is not None:
        states, lengths = text
        text = states, jnp.arange(states.shape[1]) < lengths[:, None]
    hidden = jax.jit(lambda tokens: model.hidden(params, tokens, layout, text))
    tokens = np.zeros((given_BxG.shape[0], layout.length), np.int32)
    for span in layout.spans:
        tokens[:, span.start : span.stop] = span.segment.ids.low
    tokens[:, plan.given] = given_BxG
    for span, known in zip(layout.loss_spans, plan.known):
        ids = span.segment.ids
        for position in range(span.start + known, span.stop):
            x = hidden(np.repeat(tokens, plan.fan, axis=0))[:, position - layout.prefix_length]
            factors, drawn = model.factors(ids), []
            for factor in factors.ranges:
                if drawn:
                    x = model.given(params, x, np.repeat(drawn[-1], plan.fan))
                logits = np.asarray(model.logits(params, x, factor))
                if guide is not None:
                    first = (position - span.start) % (span.segment.frame or span.segment.length) == 0
                    logits = guide(logits[0::2], logits[1::2], len(drawn), first)
                drawn.append(logits.argmax(-1) + factor.low)
            tokens[:, position] = factors.join(drawn)
    return tokens


@pytest.mark.parametrize(
    "task, known", [("text_to_video", 0), ("text_to_video", LATENT), ("text_to_image", 0), ("unconditional", 0)]
)
def test_cached_equals_full_recompute(task, known):
    text = tiny.texts(2) if task.startswith("text") else None
    plan, tokens = run(task, GREEDY, known=known, text=text)
    expected = naive_greedy(plan, tokens[:, plan.given], text)
    np.testing.assert_array_equal(tokens, expected)
    drawn = tokens[:, plan.prefilled : plan.sampled_stop]
    assert len(np.unique(drawn)) > 5, "degenerate weights would let a broken cache pass"
    assert np.any(drawn[0] != drawn[1]) or text is None


@pytest.mark.parametrize("head", [pytest.param("full", marks=pytest.mark.slow), "factorised"])
def test_guided_equals_full_recompute_of_both_branches(head):
    """Conditional rows with text, unconditional rows with every text position masked."""
    states, lengths = tiny.texts(4)
    lengths[1::2] = 0
    sample = GREEDY.replace(guidance=3.0)
    plan, tokens = run("text_to_video", sample, guided=True, text=(states, lengths), head=head)
    expected = naive_greedy(plan, tokens[:, plan.given], (states, lengths), plainly(3.0), head)
    np.testing.assert_array_equal(tokens, expected)
    _, plain = run("text_to_video", GREEDY, text=(states[0::2], lengths[0::2]), head=head)
    assert np.any(plain != tokens)


@pytest.mark.parametrize("head", [pytest.param("full", marks=pytest.mark.slow), "factorised"])
def test_adaptive_guidance_remembers_within_a_latent_frame(head):
    """Its momentum runs over the positions of a frame, for each factor of a code; however rows are batched, and
    in one program as in one for each frame."""
    settings = dict(guidance=3.0, guidance_cap=2.0, guidance_parallel=0.3, guidance_momentum=-0.6)
    sample, text, kept = GREEDY.replace(**settings), tiny.texts(6), {}
    plan, tokens = run("text_to_video", sample, batch=3, guided=True, text=text, head=head)

    def guide(cond, uncond, factor, first):
        update = (cond - uncond) - (cond - uncond).mean(-1, keepdims=True) + (0 if first else -0.6 * kept[factor])
        kept[factor] = update
        update = update * np.minimum(1, 2 / np.sqrt(np.mean(update**2, -1, keepdims=True)))
        along = cond - cond.mean(-1, keepdims=True)
        along *= np.sum(update * along, -1, keepdims=True) / np.sum(along * along, -1, keepdims=True)
        return cond + 2 * (update - 0.7 * along)

    np.testing.assert_array_equal(tokens, naive_greedy(plan, tokens[:, plan.given], text, guide, head))
    _, alone = run("text_to_video", sample, batch=1, rows=[2], guided=True, text=tuple(x[4:] for x in text), head=head)
    np.testing.assert_array_equal(alone[0], tokens[2])
    decoder, params = Decoder(tiny.model(head), plan), tiny.params(head)
    state = decoder.prefill(params, tokens[:, : plan.prefilled], *text)
    whole = decoder.decode(params, *state, np.arange(3), SamplingParams.of(sample))
    np.testing.assert_array_equal(whole[0], tokens[:, plan.prefilled :])
    _, others = run("text_to_video", GREEDY.replace(guidance=3.0), batch=3, guided=True, text=text, head=head)
    assert np.any(others != tokens)


def test_guidance_by_a_stream_hides_its_codes_in_unconditional_rows():
    """Guidance of 0 samples what the same task samples from a condition of which nothing is given."""
    layout, codes = tiny.layout_of("inpainting"), conditioning_codes(2, 3 * LATENT)
    source, rows = {"source": np.zeros((2, 1), np.int32)}, np.arange(2)
    found = {}
    for guidance in (None, 0.0, 3.0):
        plan = Plan(layout=layout, guided=guidance is not None, dropped=("video_in",))
        given = codes if guidance is not None else np.full_like(codes, -1)
        params = SamplingParams.of(GREEDY.replace(guidance=1.0 if guidance is None else guidance))
        programs = ModelPrograms(Decoder(tiny.model(), plan), tiny.params())
        tokens = sample_tokens(programs, given_tokens(plan, source | {"video_in": given}), rows, params)
        found[guidance] = layout.parse(tokens)["video"]
    np.testing.assert_array_equal(found[0.0], found[None])
    assert np.any(found[3.0] != found[0.0])


def test_guidance_one_is_no_guidance():
    text = tiny.texts(4)
    sample = SampleSpec(seed=4)
    _, guided = run("text_to_video", sample, guided=True, text=text)
    _, plain = run("text_to_video", sample, text=tuple(x[0::2] for x in text))
    np.testing.assert_array_equal(guided, plain)


def test_guidance_zero_follows_the_negative_text():
    cond, negative = tiny.texts(2, seed=1), tiny.texts(2, seed=2)
    both = tuple(np.stack(pair, 1).reshape(4, *pair[0].shape[1:]) for pair in zip(cond, negative))
    _, guided = run("text_to_video", GREEDY.replace(guidance=0.0), guided=True, text=both)
    _, plain = run("text_to_video", GREEDY, text=negative)
    np.testing.assert_array_equal(guided, plain)


@pytest.mark.parametrize("task", ["unconditional", "text_to_video", "text_to_image"])
@pytest.mark.parametrize("sample", [SampleSpec(temperature=5.0), SampleSpec(top_k=3, top_p=0.9)])
def test_tokens_parse_and_known_codes_stay(task, sample):
    known = 0 if task == "text_to_image" else LATENT
    plan, tokens = run(task, sample, batch=3, known=known)
    assert tokens.shape == (3, plan.layout.length) and tokens.dtype == np.int32
    codes = plan.layout.parse(tokens)[plan.layout.output_streams[0]]
    np.testing.assert_array_equal(codes[:, :known], conditioning_codes(3, known))
    for span in plan.layout.spans:
        if span.segment.forced:
            assert np.all(tokens[:, span.start : span.stop] == span.segment.ids.low)


@pytest.mark.parametrize(
    "known",
    [pytest.param((), marks=pytest.mark.slow), pytest.param((4, 1, 1, 1, 1), marks=pytest.mark.slow), (4, 2, 0, 1, 2)],
)
def test_two_output_streams_and_four_audio_levels(known):
    """Video then audio: each span draws from its own slice behind the codes that open it, which
    stay; boundary tokens stand between them."""
    layout = build_layout(
        task_token=Special.TASK_VIDEO_AUDIO,
        text=False,
        condition=("audio",),
        output=("video", "audio"),
        fmt=Format(video=(2, 2, 2), text_length=8, audio_frames=3),
        vocabulary=Vocabulary(tiny.EXPERIMENT.vocabulary),
    )
    plan = Plan(layout=layout, known=known)
    codes_BxK = conditioning_codes(2, sum(known)) % 16
    streams = {"source": np.zeros((2, 1), np.int32), "audio_in": conditioning_codes(2, 12) % 16}
    given = given_tokens(plan, streams, codes_BxK)
    programs = ModelPrograms(Decoder(tiny.model(), plan), tiny.params())
    tokens = sample_tokens(programs, given, np.arange(2), SamplingParams.of(GREEDY))
    np.testing.assert_array_equal(tokens, naive_greedy(plan, given, None))
    codes = layout.parse(tokens)
    assert codes["video"].shape == (2, 8) and codes["audio"].shape == (2, 12)
    np.testing.assert_array_equal(codes["audio_in"], streams["audio_in"])
    spans = [codes["video"], *np.split(codes["audio"], 4, axis=1)]
    opening = [span[:, :k] for span, k in zip(spans, known or (0,) * 5)]
    np.testing.assert_array_equal(np.concatenate(opening, axis=1), codes_BxK)


@pytest.mark.slow
def test_given_codes_inside_the_loop_do_not_mind_a_mesh():
    """Two devices share the batch: forced ids and boundary tokens lie as drawn ones do, and the
    unconditional row of a sample beside its conditional one."""
    layout = build_layout(
        task_token=Special.TASK_VIDEO_AUDIO,
        text=True,
        condition=(),
        output=("video", "audio"),
        fmt=Format(video=(1, 2, 1), text_length=8, audio_frames=3),
        vocabulary=Vocabulary(tiny.EXPERIMENT.vocabulary),
    )
    sample, text = SampleSpec(top_k=5, guidance=2.0), tiny.texts(8)
    plan = Plan(layout=layout, known=(1, 2, 0, 1, 2), guided=True, truncation=Truncation.of(sample))
    given = given_tokens(plan, {"source": np.zeros((4, 1), np.int32)}, conditioning_codes(4, 6) % 16)
    sampling_params, rows = SamplingParams.of(sample), np.arange(4)
    alone = sample_tokens(ModelPrograms(Decoder(tiny.model(), plan), tiny.params()), given, rows, sampling_params, text)
    mesh = mesh_lib.build(MeshSpec(fsdp=2, sequence=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        halves = batch_sharding(mesh)
        tokens, forced, states, lengths = (
            jax.device_put(a, halves) for a in (*np.split(given, [plan.prefilled], axis=1), *text)
        )
        decoder = Decoder(tiny.model(), plan)
        cache, x_RxD = decoder.prefill(tiny.params(), tokens, states, lengths)
        tokens, _ = decoder.decode(tiny.params(), cache, x_RxD, rows, sampling_params, forced)
    np.testing.assert_array_equal(np.asarray(tokens), alone[:, plan.prefilled :])


def test_a_missing_condition_is_named():
    layout = tiny.layout_of("unconditional")
    with pytest.raises(UserError, match="stream 'source' of shape .2, 1., got .2, 3."):
        given_tokens(Plan(layout=layout), {"source": np.zeros((2, 3), np.int32)})
    with pytest.raises(UserError, match="stream 'source'.*none were given"):
        given_tokens(Plan(layout=layout), {"other": np.zeros((2, 3), np.int32)})


def test_a_sample_depends_on_its_row_alone():
    """Batches of 4, 2 and 1, in any order, give the same samples, guidance included."""
    sample = SampleSpec(temperature=1.3, top_k=20, guidance=2.0, seed=11)
    states, lengths = tiny.texts(8)
    task = dict(task="text_to_video", sample=sample, guided=True)
    _, whole = run(**task, batch=4, text=(states, lengths))
    for rows in ([2, 0], [3]):
        pick = np.array([2 * r + half for r in rows for half in (0, 1)])
        text = states[pick], lengths[pick]
        _, part = run(**task, batch=len(rows), rows=np.array(rows), text=text)
        np.testing.assert_array_equal(part, whole[rows])
    assert len({tuple(row) for row in whole}) == 4


def test_seed_reproduces_and_changes():
    first, again, other = (run("unconditional", SampleSpec(seed=seed))[1] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_knobs_do_not_recompile():
    plan = Plan(layout=tiny.layout_of("unconditional"), truncation=Truncation(nucleus=True))
    decoder = Decoder(tiny.model(), plan)
    given = given_tokens(plan, {"source": np.zeros((1, 1), np.int32)})
    for sample in (SampleSpec(seed=1, top_p=0.5), SampleSpec(seed=2, temperature=0.0)):
        sample_tokens(ModelPrograms(decoder, tiny.params()), given, np.arange(1), SamplingParams.of(sample))
    # Latent frames share a program.
    assert len(plan.chunks) == 3 and decoder.advance._cache_size() == decoder.prefill._cache_size() == 1


@pytest.mark.parametrize("guided, layers", [(False, 24), (True, UNROLLED_LAYERS)])
def test_the_loop_updates_the_cache_in_place(guided, layers):
    """Temporary memory of decoding a latent frame is below a twentieth of the cache: no second copy exists."""
    spec = tiny.EXPERIMENT.model.replace(layers=layers, width=64, kv_heads=4, head_dim=32)
    model = dataclasses.replace(tiny.model(), spec=spec)
    plan = Plan(layout=tiny.layout_of("text_to_video"), guided=guided)
    batch, params = 8, model.abstract()
    given = jax.ShapeDtypeStruct((batch, plan.prefilled), jnp.int32)
    states = jax.ShapeDtypeStruct((batch * plan.fan, 8, tiny.TEXT_WIDTH), jnp.float32)
    lengths = jax.ShapeDtypeStruct((batch * plan.fan,), jnp.int32)
    decoder = Decoder(model, plan)
    cache, x = jax.eval_shape(decoder.prefill, params, given, states, lengths)
    rows, (start, steps) = jax.ShapeDtypeStruct((batch,), jnp.int32), plan.chunks[1]
    params = jax.eval_shape(model.by_layer, params)
    compiled = decoder.advance.lower(
        steps, params, cache, x, jnp.int32(start), rows, SamplingParams.of(SampleSpec())
    ).compile()
    cache_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= cache_bytes
    assert memory.temp_size_in_bytes < cache_bytes / 20


def test_plans_that_leave_nothing_to_draw_are_refused():
    layout = tiny.layout_of("text_to_video")
    with pytest.raises(UserError, match="leave nothing to sample"):
        Plan(layout=layout, known=(3 * LATENT,))
    with pytest.raises(UserError, match="needs a text"):
        Plan(layout=tiny.layout_of("unconditional"), guided=True)
    plan = Plan(layout=layout, known=(LATENT,))
    with pytest.raises(UserError, match="known codes of shape"):
        given_tokens(plan, {"source": np.zeros((2, 1), np.int32)}, conditioning_codes(2, 3))
