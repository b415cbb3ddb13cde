"""Codecs at a given rate: the search, and that real streams meet it."""

from __future__ import annotations

import math
from collections.abc import Callable

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from poet.evaluation.codecs import video as codec
from poet.evaluation.metrics.pixels import clip_psnr
from poet.media import bitstreams

CODINGS = codec.codings(("x264", "x265"), "medium")


class Encoder:
    """Stands in for an encoder whose bits are a given function of the rate factor."""

    def __init__(self, bits: Callable[[float], float]) -> None:
        self.bits, self.tried = bits, []

    def __call__(self, crf: float) -> codec.Stream:
        self.tried.append(codec.Stream((), crf, int(self.bits(crf))))
        return self.tried[-1]


def textured_clips(count: int) -> np.ndarray:
    """uint8 (count, 9, 32, 32, 3): moving waves under grain, busier from clip to clip."""
    rng = np.random.default_rng(0)
    t, y, x = np.mgrid[:9, :32, :32]
    clips = []
    for index in range(count):
        waves = [np.sin((x + 2 * t) / p) * np.cos((y - t) / p) for p in (3, 5, 8)]
        grain = rng.normal(0, 6 * (index + 1), (9, 32, 32, 3))
        clips.append(np.clip(128 + 80 * np.stack(waves, -1) + grain, 0, 255))
    return np.rint(clips).astype(np.uint8)


@hypothesis.given(bits=st.floats(5000, 1e6), halving=st.floats(4, 9), at_zero=st.floats(2e6, 1e8))
def test_search_ends_within_tolerance_of_a_smooth_encoder(bits: float, halving: float, at_zero: float) -> None:
    hypothesis.assume(at_zero * 2 ** (-codec.CRF_WORST / halving) < bits / 2)
    encoder = Encoder(lambda crf: at_zero * 2 ** (-crf / halving))
    found = codec.at_rate(encoder, bits)
    assert bits <= found.bits <= bits * (1 + codec.TOLERANCE)
    assert len(encoder.tried) <= codec.ATTEMPTS


@hypothesis.given(bits=st.integers(1, 10_000), steps=st.lists(st.integers(1, 10_000), min_size=1, max_size=20))
def test_search_takes_the_cheapest_stream_that_is_not_below(bits: int, steps: list[int]) -> None:
    """Steps as of a short clip, in any order: rates of real encoders are not quite monotonic."""
    encoder = Encoder(lambda crf: steps[min(int(crf / 51 * len(steps)), len(steps) - 1)])
    found = codec.at_rate(encoder, bits)
    enough = [stream.bits for stream in encoder.tried if stream.bits >= bits]
    if enough:
        assert found.bits == min(enough)
    else:
        assert found.crf == codec.CRF_BEST and encoder.tried[-1] is found


@pytest.mark.parametrize("coding", CODINGS, ids=lambda c: c.label)
def test_clips_are_coded_at_the_rate_asked_for(coding: codec.Coding) -> None:
    clips = textured_clips(3)
    bits_per_clip = 0.4 * math.prod(clips.shape[1:4])
    coded = codec.code(clips, coding, bits_per_clip, 8.0)
    assert coded.video_NxTxHxWx3.shape == clips.shape and coded.video_NxTxHxWx3.dtype == np.uint8
    assert 1 <= 8 * coded.slice_bytes / (bits_per_clip * len(clips)) < 1.1
    assert coded.stream_bytes > coded.slice_bytes
    assert len(coded.crfs) == (1 if coding.joined else len(clips))
    assert min(clip_psnr(a, b) for a, b in zip(clips, coded.video_NxTxHxWx3)) > 20


def test_codings_spend_bits_as_they_say() -> None:
    """One rate factor gives a busy clip more bits than a plain one; streams per clip do not."""
    clips = textured_clips(3)
    bits = 0.6 * math.prod(clips.shape[1:4])
    apart = codec.code(clips, codec.Coding(codec="x264"), bits, 8.0)
    assert apart.crfs[0] < apart.crfs[2]
    joined = codec.code(clips, codec.Coding(codec="x264", joined=True), bits, 8.0)
    assert apart.crfs[0] < joined.crfs[0] < apart.crfs[2]


def test_more_bits_are_nearer_to_the_clip() -> None:
    clips, coding = textured_clips(1), CODINGS[0]
    quality = []
    for bits_per_pixel in (0.2, 0.5, 1.5):
        coded = codec.code(clips, coding, bits_per_pixel * math.prod(clips.shape[1:4]), 8.0)
        quality.append(clip_psnr(clips[0], coded.video_NxTxHxWx3[0]))
    assert quality == sorted(quality) and quality[-1] > quality[0] + 3


def test_codings_are_every_way_of_every_codec() -> None:
    ways = {(c.codec, c.pixel_format, c.joined) for c in CODINGS}
    assert len(ways) == len(CODINGS) == 2 * 2 * len(bitstreams.PIXEL_FORMATS)
