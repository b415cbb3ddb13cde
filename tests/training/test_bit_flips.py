"""Flipped bits reach what is read and never what is predicted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poet.spec import TrainSpec, UserError, VocabularySpec
from poet.spec.vocabulary import Special, Vocabulary
from poet.tasks.layout import Format, build_layout
from poet.training.bit_flips import flipped

VOCABULARY = Vocabulary(VocabularySpec(visual_bits=10, audio_levels=2, audio_codes=16, text_pieces=8))
LAYOUT = build_layout(
    task_token=Special.TASK_VIDEO,
    text=False,
    condition=("video",),
    output=("video", "audio"),
    fmt=Format(video=(2, 8, 8), text_length=4, audio_frames=5),
    vocabulary=VOCABULARY,
)


def tokens(rows: int = 64) -> np.ndarray:
    rng = np.random.default_rng(0)
    streams = {name: rng.integers(0, 16, (rows, size)) for name, size in LAYOUT.streams.items()}
    for name in ("video", "video_in"):
        streams[name] = rng.integers(0, 1024, streams[name].shape)
    streams["video_in"][:, ::3] = -1  # Not given.
    return LAYOUT.assemble({name: codes.astype(np.int32) for name, codes in streams.items()})


def test_each_bit_is_flipped_by_the_chance_of_its_clip():
    before = tokens()
    after = np.asarray(jax.jit(lambda k, t: flipped(k, t, LAYOUT, 0.4))(jax.random.key(1), before))
    parsed = [LAYOUT.parse(t) for t in (before, after)]  # Refuses ids that are not legal.
    shares = []
    for name in ("video", "video_in"):
        old, new = (p[name] for p in parsed)
        np.testing.assert_array_equal(new < 0, old < 0)
        given = old >= 0
        changed = np.where(given, old ^ new, 0)
        shares.append([((changed >> bit) & 1).sum(1) / given.sum(1) for bit in range(10)])
    shares_SxKxB = np.array(shares)
    clip_B = shares_SxKxB.mean((0, 1))
    assert 0 < clip_B.min() < 0.06 and 0.34 < clip_B.max() < 0.44, "uniform in 0..0.4"
    assert clip_B.mean() == pytest.approx(0.2, abs=0.04)
    # Both streams, and all bits, by the same chance of the clip.
    assert np.abs(shares_SxKxB - clip_B).max() < 0.25
    for name in ("audio", "source"):
        np.testing.assert_array_equal(parsed[0][name], parsed[1][name])


def test_no_chance_flips_nothing():
    before = jnp.asarray(tokens(2))
    np.testing.assert_array_equal(flipped(jax.random.key(0), before, LAYOUT, 0.0), before)


def test_more_than_half_is_refused():
    with pytest.raises(UserError, match="TRAIN.bit_flips = 0.6: must lie in 0.0..0.5|bit_flips"):
        TrainSpec(bit_flips=0.6)
