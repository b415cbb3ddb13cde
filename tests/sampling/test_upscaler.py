"""Chunks and tiles of long and large clips, and what `Upscaler` refuses."""

from __future__ import annotations

import dataclasses
import sys
import types

import numpy as np
import pytest

from poet import media
from poet.sampling import steadying
from poet.sampling.superres import Upscaler, chunks, faded
from poet.spec import (
    ClipSpec,
    DataSpec,
    Experiment,
    ModelSpec,
    SuperResolutionSpec,
    UserError,
    VideoTokenizerSpec,
    VocabularySpec,
)
from poet.streams.base import HIDDEN
from poet.tasks.resolved import Resolved
from poet.training import networks

RUN = Experiment(
    clip=ClipSpec(frames=9, height=64, width=64),
    vocabulary=VocabularySpec(visual_bits=8),
    video_tokenizer=VideoTokenizerSpec(bits=8),
    model=ModelSpec(layers=3, width=16, heads=2, kv_heads=2, head_dim=8, mlp_width=16, dtype="float32"),
    super_resolution=SuperResolutionSpec(
        vertical=(1, 0, 2), horizontal=(1, 2, 0), temporal=(1, 4, 4), overlap=2, overlap_time=2, consistency=0.0
    ),
    data=DataSpec(mixture_rates={"super_resolution": 1.0}),
)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A tokenizer of clips that are grey blocks: a code is the grey of a latent's last frame."""

    spec: VideoTokenizerSpec = RUN.video_tokenizer

    def encode(self, video):
        frames = [0, *range(4, video.shape[1], 4)]
        return video[:, frames][:, :, ::8, ::8, 0].astype(np.int32)

    def decode(self, codes):
        assert codes.min() >= 0
        times = np.concatenate([codes[:, :1], codes[:, 1:].repeat(4, axis=1)], axis=1)
        return np.repeat(times.repeat(8, 2).repeat(8, 3)[..., None], 3, axis=-1).astype(np.uint8)


@pytest.fixture
def upscaler():
    """Its network repeats the low resolution, and checks that what is known agrees."""
    made, seen = Upscaler(Resolved(RUN), None, Blocks()), []

    def nearest(codes, low, text, seed, part, batch, first):
        wanted = low.repeat(2, axis=2).repeat(2, axis=3)
        assert codes.shape[1:] == (3, 8, 8)
        np.testing.assert_array_equal(codes[codes != HIDDEN], wanted[codes != HIDDEN])
        seen.append((part, int((codes != HIDDEN).sum())))
        return wanted

    made._sampled, made.seen = nearest, seen
    return made


@pytest.mark.parametrize("frames, height, width", [(1, 32, 32), (9, 32, 32), (20, 32, 32), (9, 48, 80)])
def test_parts_join_without_a_seam(upscaler, frames, height, width):
    """Every part is given what the parts before it have made, and the whole is that of one pass."""
    rng = np.random.default_rng(0)
    times = np.minimum(-(-np.arange(frames) // 4), -(-frames // 4))
    cells = rng.integers(0, 256, (2, times.max() + 1, height // 8, width // 8)).astype(np.uint8)
    video = cells[:, times].repeat(8, 2).repeat(8, 3)[..., None].repeat(3, -1)
    np.testing.assert_array_equal(upscaler.upscale(video), video.repeat(2, 2).repeat(2, 3))
    parts, known = zip(*upscaler.seen)
    assert len(set(parts)) == len(parts) and all(known[1:]) and not known[0]


def test_a_consistent_result_is_its_input_at_the_size_of_the_input(upscaler):
    video = np.random.default_rng(0).integers(100, 150, (1, 9, 32, 32, 3)).astype(np.uint8)
    again = media.resize_video(upscaler.changed(consistency=1.0).upscale(video)[0], 32, 32)
    assert np.abs(again.astype(int) - video[0]).max() <= 1


def test_chunks_are_steadied_as_one_clip(upscaler):
    """With the settings of the checkpoint; a change alters the picture."""
    video = np.random.default_rng(0).integers(100, 150, (1, 20, 32, 32, 3)).astype(np.uint8)
    plain = upscaler.upscale(video)
    found = upscaler.changed(steadiness=0.8).upscale(video)
    np.testing.assert_array_equal(found[0], steadying.steadied(plain[0], video[0], 0.8, 0.0))
    assert (found != plain).any()


def test_what_needs_opencv_is_refused_without_it(upscaler, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    upscaler.check((1, 9, 32, 32, 3))
    with pytest.raises(UserError, match="steadiness above 0 needs OpenCV: pip install"):
        upscaler.changed(steadiness=0.5).check((1, 9, 32, 32, 3))


def test_codes_that_are_known_are_upscaled_as_they_are(upscaler):
    """And the clip is not encoded, if it is as long as the model's; a longer one is."""
    codes = np.random.default_rng(0).integers(0, 256, (1, 3, 4, 4)).astype(np.int32)
    made = upscaler.upscale(np.zeros((1, 9, 32, 32, 3), np.uint8), codes_Nxtxhxw=codes)
    np.testing.assert_array_equal(Blocks().encode(made), codes.repeat(2, axis=2).repeat(2, axis=3))
    assert not upscaler.upscale(np.zeros((1, 13, 32, 32, 3), np.uint8), codes_Nxtxhxw=codes).any()


def test_chunks_cover_a_clip_and_share_frames():
    for frames in range(1, 60):
        parts = chunks(frames, 17, 5)
        assert parts[0].start == parts[0].shared == 0 and parts[-1].stop >= frames
        assert all(a.stop - b.start == b.shared == 5 and b.start % 4 == 0 for a, b in zip(parts, parts[1:]))
        assert len(parts) == 1 or parts[-2].stop < frames


def test_shared_frames_fade_evenly_from_one_chunk_to_the_next():
    shape = (1, 4, 2, 2, 3)
    found = faded(np.full((1, 3, 2, 2, 3), 40, np.uint8), np.full(shape, 80, np.uint8))
    assert found[0, :, 0, 0, 0].tolist() == [50, 60, 70, 80]


@pytest.mark.parametrize(
    "shape, prompts, words",
    [
        ((1, 9, 16, 32, 3), (), "16x32 is smaller than what the model upscales, 32x32"),
        ((1, 9, 36, 32, 3), (), "36"),
        ((9, 32, 32, 3), (), "expected .clips, frames"),
        ((2, 9, 32, 32, 3), ("a",), "1 prompts for 2 clips"),
    ],
)
def test_clips_that_do_not_fit_are_refused(upscaler, shape, prompts, words):
    with pytest.raises(UserError, match=words):
        upscaler.upscale(np.zeros(shape, np.uint8), prompts)


def test_a_language_model_is_refused():
    run = RUN.replace(data=DataSpec(mixture_rates={"text_to_video": 1.0}))
    with pytest.raises(UserError, match="language model.*poet generate"):
        networks.expect(types.SimpleNamespace(spec=run, path="runs/lm"), "super_resolution")
