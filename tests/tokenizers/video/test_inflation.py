"""Inflation keeps what the image tokenizer knew, and adds nothing in time."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from poet.spec import OptimizerSpec, UserError, VideoTokenizerSpec
from poet.tokenizers import adversarial
from poet.tokenizers.video import inflation, lfq, magvit
from poet.tokenizers.video.base import VideoTokenizer

PATCHES = VideoTokenizerSpec(
    base_channels=8,
    multipliers=(1,),
    blocks=1,
    temporal_downsample=(),
    stem=(4, 4, 4),
    stem_kernel=1,
    norm_groups=2,
    bits=6,
)
LEVELS = VideoTokenizerSpec(
    base_channels=8,
    multipliers=(1, 1, 2),
    blocks=1,
    temporal_downsample=(False, True),
    stem=(2, 1, 1),
    down_kernel=4,
    norm_groups=2,
    bits=6,
)
FINE = PATCHES.replace(
    decoder_channels=4,
    decoder_multipliers=(1, 2),
    decoder_temporal_downsample=(True,),
    decoder_stem=(2, 2, 2),
    decoder_stem_kernel=3,
)
SPECS = pytest.mark.parametrize("spec", [PATCHES, LEVELS, FINE], ids=["patches", "levels", "fine decoder"])

init, reconstruct = (jax.jit(f, static_argnums=0) for f in (magvit.init, magvit.reconstruct))


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, 1, 8, 16, 3), np.float32)


@pytest.fixture(scope="module", params=[PATCHES, LEVELS, FINE], ids=["patches", "levels", "fine decoder"])
def both(request) -> tuple:
    """(spec, its weights, image spec, the weights that were inflated)."""
    spec = request.param
    image = inflation.image_spec(spec)
    params = jax.tree.map(np.asarray, init(image, jax.random.key(1)))
    return spec, inflation.inflate(spec, params), image, params


def test_inflated_weights_fill_the_declared_shapes(both) -> None:
    spec, inflated, _, _ = both
    declared = jax.eval_shape(lambda: init(spec, jax.random.key(0)))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), inflated, declared)


def test_a_single_frame_is_coded_as_by_the_image_tokenizer(both) -> None:
    spec, inflated, image, params = both
    got, z, ids = reconstruct(spec, inflated, pictures(2))
    want, image_z, image_ids = reconstruct(image, params, pictures(2))
    np.testing.assert_allclose(z, image_z, atol=1e-5)
    np.testing.assert_array_equal(ids, image_ids)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_still_clip_stays_still(both) -> None:
    spec, inflated, image, params = both
    still = np.repeat(pictures(1), 1 + 2 * spec.factor[0], axis=1)
    got, _, ids = reconstruct(spec, inflated, still)
    want, _, image_ids = reconstruct(image, params, pictures(1))
    np.testing.assert_array_equal(ids, np.repeat(image_ids, 3, axis=1))
    np.testing.assert_allclose(got, np.repeat(want, still.shape[1], axis=1), atol=1e-5)


def test_an_inflated_frame_depends_on_no_other_window(both) -> None:
    """Only the last temporal tap is filled, so codes see their own window of frames alone."""
    spec, inflated, _, _ = both
    factor = spec.factor[0]
    clip = np.random.default_rng(1).random((1, 1 + 2 * factor, 8, 16, 3), np.float32)
    other = clip.copy()
    other[:, 1 : 1 + factor] = 0.5
    codes = [lfq.quantize(magvit.encode(spec, inflated, x))[1] for x in (clip, other)]
    np.testing.assert_array_equal(codes[0][:, [0, 2]], codes[1][:, [0, 2]])


@SPECS
def test_the_same_network_is_taken_over_as_it_is(spec) -> None:
    params = jax.tree.map(np.asarray, init(spec, jax.random.key(1)))
    assert inflation.initial_weights(spec, VideoTokenizer.from_params(spec, params)) is params


def test_another_network_is_refused_by_name() -> None:
    image = inflation.image_spec(PATCHES).replace(bits=4)
    source = VideoTokenizer.from_params(image, init(image, jax.random.key(0)))
    with pytest.raises(UserError, match=r"its image network in \['bits'\]"):
        inflation.initial_weights(PATCHES, source)


def test_training_of_a_finer_decoder_starts_at_the_pictures_of_the_first() -> None:
    """All weights of the trained network are kept, and what is added adds nothing yet; a next run keeps that too."""
    source = VideoTokenizer.from_params(PATCHES, jax.tree.map(np.asarray, init(PATCHES, jax.random.key(1))))
    nets = adversarial.networks(OptimizerSpec(), magvit.declare(FINE), None, 0.0)
    params = adversarial.init(nets, jax.random.key(2), inflation.encoder_kept(FINE, source))["params"]
    clip = np.random.default_rng(0).random((1, 9, 8, 16, 3), np.float32)
    got, want = (magvit.reconstruct(s, p, clip)[0] for s, p in ((FINE, params), (PATCHES, source.params)))
    np.testing.assert_array_equal(got, want)

    trained = VideoTokenizer.from_params(FINE, params)
    assert inflation.encoder_kept(FINE, trained) is trained.params
    other = inflation.encoder_kept(FINE.replace(decoder_blocks=2), trained)
    jax.tree.map(np.testing.assert_array_equal, other, source.params)


def test_an_encoder_of_another_network_cannot_be_kept() -> None:
    params = jax.tree.map(np.asarray, init(PATCHES, jax.random.key(1)))
    with pytest.raises(UserError, match="frozen_encoder.*bits"):
        inflation.encoder_kept(FINE.replace(bits=4), VideoTokenizer.from_params(PATCHES, params))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"decoder_stem": (4, 4, 4)}, r"decoder_stem.*\(8, 8, 8\) pixels.*\(4, 4, 4\)"),
        ({"multipliers": (1, 1), "temporal_downsample": (True,), "decoder_stem": (4, 4, 4)}, r"\(8, 8, 8\) pixels"),
        ({"decoder_multipliers": (1, 2, 2)}, "temporal_downsample.*one flag per level"),
        ({"decoder_channels": 3}, "norm_groups"),
        ({"decoder_stem": (4, 4)}, r"needs \(t, h, w\)"),
    ],
)
def test_a_decoder_of_other_sizes_is_refused(changes, words) -> None:
    with pytest.raises(UserError, match=words):
        FINE.replace(**changes)
