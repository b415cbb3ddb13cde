"""Chunks of frames give what the whole clip gives; tiles cover it without seams."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet.spec import UserError, VideoTokenizerSpec
from poet.tokenizers.video import base, layers, lfq, magvit, tiling
from poet.tokenizers.video.base import VideoTokenizer

# Three levels with late temporal downsampling behind a stem: 4 frames and 8x8 pixels per latent; a finer decoder too.
SPEC = VideoTokenizerSpec(
    base_channels=4,
    multipliers=(1, 2, 2),
    blocks=1,
    temporal_downsample=(False, True),
    stem=(2, 2, 2),
    norm_groups=2,
    bits=6,
    decoder_multipliers=(1, 1),
    decoder_temporal_downsample=(True,),
    decoder_stem=(1, 1, 1),
)
LATENTS = 6


def weights(spec: VideoTokenizerSpec) -> layers.Tree:
    """Normals of every declared shape, drawn by numpy, which compiles nothing."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: magvit.init(spec, jax.random.key(0)))
    return jax.tree.map(lambda s: np.float32(rng.normal(size=s.shape) / max(np.prod(s.shape[:-1]), 4) ** 0.5), shapes)


# Every cut of a clip of LATENTS latents into chunks of one or two.
SPLITS = st.sampled_from(
    [
        list(sizes)
        for chunks in range(1, LATENTS + 1)
        for sizes in itertools.product((1, 2), repeat=chunks)
        if sum(sizes) == LATENTS
    ]
)


class Chunked:
    """Both directions of a network, each shape compiled once."""

    def __init__(self, spec: VideoTokenizerSpec) -> None:
        self.spec, self.params = spec, weights(spec)
        self.encode = self._jitted(magvit.encode_chunk)
        self.decode = self._jitted(magvit.decode_chunk)
        rng = np.random.default_rng(1)
        frames = 1 + spec.factor[0] * (LATENTS - 1)
        self.video = np.float32(rng.uniform(size=(1, frames, 16, 24, 3)))
        self.bits = np.float32(rng.choice([-1, 1], (1, LATENTS, 2, 3, spec.bits)))

    def _jitted(self, function: Callable) -> Callable:
        return functools.partial(jax.jit(functools.partial(function, self.spec)), self.params)

    @functools.cached_property
    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        latents, pixels = self.encode(self.video, None)[0], self.decode(self.bits, None)[0]
        return np.asarray(latents), np.asarray(pixels)

    def latents(self, sizes: list[int], carry: Callable = lambda kept: kept) -> np.ndarray:
        return self._run(self.encode, self.video, sizes, self.spec.factor[0], carry)

    def pixels(self, sizes: list[int], carry: Callable = lambda kept: kept) -> np.ndarray:
        return self._run(self.decode, self.bits, sizes, 1, carry)

    def _run(self, step: Callable, source: np.ndarray, sizes: list[int], factor: int, carry: Callable) -> np.ndarray:
        stops = [1 + factor * (stop - 1) for stop in np.cumsum(sizes)]
        outputs, kept = [], None
        for start, stop in zip([0, *stops], stops):
            output, kept = step(source[:, start:stop], kept)
            outputs.append(output)
            kept = carry(kept)
        return np.concatenate(outputs, axis=1)


@pytest.fixture(scope="module")
def chunked() -> Chunked:
    return Chunked(SPEC)


# ----------------------------------------------------------------------------------------- chunks


@settings(deadline=None, max_examples=10)
@given(SPLITS)
def test_chunks_give_latents_and_pixels_of_the_whole_clip(chunked: Chunked, sizes: list) -> None:
    latents, pixels = chunked.whole
    found = chunked.latents(sizes)
    np.testing.assert_array_equal(lfq.quantize(found)[1], lfq.quantize(latents)[1])
    np.testing.assert_allclose(found, latents, rtol=0, atol=1e-5)
    np.testing.assert_allclose(chunked.pixels(sizes), pixels, rtol=0, atol=1e-5)


def test_an_even_downsampling_kernel_is_chunked_as_well() -> None:
    chunked = Chunked(SPEC.replace(down_kernel=4))
    for sizes in ([1, 2, 2, 1], [2, 2, 1, 1]):
        whole = chunked.encode(chunked.video, None)[0]
        np.testing.assert_allclose(chunked.latents(sizes), whole, rtol=0, atol=1e-5)


def test_chunks_without_the_frames_of_the_one_before_are_wrong(chunked: Chunked) -> None:
    """What the equality rests on: chunks that know nothing of each other differ."""
    forget = functools.partial(jax.tree.map, jnp.zeros_like)
    latents, pixels = chunked.whole
    sizes = [2, 2, 1, 1]
    assert np.abs(chunked.latents(sizes, forget) - latents)[:, 2:].max() > 0.1
    assert np.abs(chunked.pixels(sizes, forget) - pixels)[:, 5:].max() > 0.1


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_chunks_of_one_convolution(kernel: int, stride: int) -> None:
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(1, 1 + 4 * stride, 1, 1, 2)))
    weight = {"kernel": np.float32(rng.normal(size=(kernel, 1, 1, 2, 3)))}
    run = functools.partial(layers.causal_conv, weights=weight, stride=(stride, 1, 1))
    stops, kept, outputs = [1 + stride, 1 + 2 * stride, 1 + 4 * stride], None, []
    for start, stop in zip([0, *stops], stops):
        past = layers.Past(kept)
        outputs.append(run(x[:, start:stop], past=past))
        kept = past.keep()
        assert sum(frames.shape[1] for frames in kept) == max(kernel - stride, 0)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), run(x), atol=1e-6)


def test_frames_of_another_network_are_refused() -> None:
    past = layers.Past([np.zeros((1, 2, 1, 1, 2), np.float32)] * 2)
    past.in_front(np.zeros((1, 1, 1, 1, 2), np.float32), 3, 1)
    with pytest.raises(ValueError, match="another network"):
        past.keep()


@given(st.integers(1, 200), st.integers(0, 50))
def test_chunks_cover_every_frame_once(length: int, size: int) -> None:
    cuts = tiling.chunks(length, size)
    frames = [i for cut in cuts for i in range(length)[cut]]
    assert frames == list(range(length))
    assert not size or max(cut.stop - cut.start for cut in cuts) <= 1 + size
    assert all((cut.stop - 1) % size == 0 for cut in cuts[:-1])


# ------------------------------------------------------------------------------------------ tiles

TILINGS = st.tuples(st.integers(1, 90), st.integers(1, 32)).flatmap(
    lambda pair: st.tuples(*map(st.just, pair), st.integers(0, pair[1] - 1))
)


@given(TILINGS, st.sampled_from([1, 4, 8]))
def test_windows_cover_a_side_and_their_weights_add_up_to_one(
    tiling_of_a_side: tuple[int, int, int], factor: int
) -> None:
    size, tile, overlap = tiling_of_a_side
    found = tiling.windows(size, tile, overlap)
    assert {w.stop - w.start for w in found} == {min(tile, size)}
    assert found[0].start == 0 and found[-1].stop == size
    assert all(a.stop - b.start >= overlap for a, b in zip(found, found[1:]))
    owned = [i for w in found for i in range(w.owned.start, w.owned.stop)]
    assert owned == list(range(size))
    assert all(w.start <= w.owned.start and w.owned.stop <= w.stop for w in found)
    total = np.zeros(size * factor)
    for window in found:
        part = window.weights(factor)
        assert part.min() >= 0 and part.shape == ((window.stop - window.start) * factor,)
        total[window.start * factor : window.stop * factor] += part
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_weights_of_two_windows_are_a_straight_ramp() -> None:
    left, right = tiling.windows(6, 4, 2)
    np.testing.assert_allclose(left.weights(2), [1, 1, 1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8])
    np.testing.assert_allclose(right.weights(2), left.weights(2)[::-1])


@pytest.mark.parametrize("overlap", [-1, 4, 9])
def test_an_overlap_as_large_as_the_tile_is_refused(overlap: int) -> None:
    with pytest.raises(UserError, match=r"overlap must lie in 0\.\.3"):
        tiling.windows(9, 4, overlap)


def local_network(step: Callable, spec: VideoTokenizerSpec, mesh: None) -> Callable:
    """A stand-in whose outputs depend on nothing but the latent's own pixels or code."""
    t, h, w = spec.factor

    def run(params: Any, block: np.ndarray, kept: Any) -> tuple[np.ndarray, Any]:
        block = np.asarray(block)
        if step is base.encode_chunk:
            start = 0 if kept is None else t - 1
            return block[:, start::t, ::h, ::w, 0].astype(np.int32) % 64, ()
        for axis, factor in enumerate((t, h, w)):
            block = np.repeat(block, factor, axis + 1)
        block = block[:, t - 1 :] if kept is None else block
        return np.repeat(block[..., None], 3, -1).astype(np.uint8), ()

    return run


@given(data=st.data(), side=st.tuples(st.integers(2, 9), st.integers(2, 9)))
@settings(deadline=None, max_examples=40)
def test_every_tile_and_chunk_lands_where_it_belongs(data: st.DataObject, side: tuple) -> None:
    """With a network that looks at nothing else, cutting is to change nothing at all."""
    tile = data.draw(st.integers(1, 10))
    latents = data.draw(st.integers(1, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_compiled", local_network)
        whole = VideoTokenizer(spec=SPEC, params={}, fingerprint="")
        cut = dataclasses.replace(
            whole,
            tile=tile,
            overlap=data.draw(st.integers(0, tile - 1)),
            chunk_frames=4 * data.draw(st.integers(0, 3)),
            batch=data.draw(st.integers(1, 5)),
        )
        shape = (2, 1 + 4 * (latents - 1), side[0] * 8, side[1] * 8, 3)
        video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        ids = whole.encode(video)
        assert ids.shape == (2, latents, *side)
        np.testing.assert_array_equal(cut.encode(video), ids)
        np.testing.assert_array_equal(cut.decode(ids), whole.decode(ids))
