"""Exports of tasks with sound against the generator that they came from."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "sampling"))

import tiny  # noqa: E402

from poet.serving import export as exporting  # noqa: E402
from poet.serving.runtime import Runtime  # noqa: E402
from poet.spec import ExportSpec, SampleSpec, UserError  # noqa: E402
from poet.tasks.resolved import Resolved  # noqa: E402

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (3, 5, 16, 16, 3)).astype(np.uint8)
SOUNDS = RNG.integers(-8000, 8000, (3, 5000)).astype(np.int16)
# What one program and another make of the same codes may round to neighbouring int16 values.
ROUNDING = 1


@pytest.fixture(scope="module")
def generator():
    return tiny.generator(SampleSpec(seed=3), sound=True)


def test_a_continuation_is_given_its_opening_and_draws_both_streams(generator, tmp_path):
    """Three samples through programs of batch 2; the sound's opening is forced inside the loop."""
    task = "audio_video_continuation"
    spec = ExportSpec(task=task, batch=2, conditioning_frames=3)
    runtime = Runtime.load(exporting.export(generator, spec, tmp_path / "export"))
    opening = dict(known_video=PIXELS[:, :3], known_audio=SOUNDS[:, :3000])
    result = runtime.generate(**opening)
    known = generator.encode_conditioning(task, 2, {"video": PIXELS, "audio": SOUNDS})
    tokens = generator.tokens(task, 3, known=known, latents=2, batch=2)
    np.testing.assert_array_equal(result.tokens, tokens)
    drawn = generator.detokenize(task, tokens)
    np.testing.assert_array_equal(result.video, drawn.video)
    assert result.audio.dtype == np.int16 and result.audio.shape == (3, 5000)
    np.testing.assert_allclose(result.audio.astype(int), drawn.audio, atol=ROUNDING)
    with pytest.raises(UserError, match="give known_audio"):
        runtime.generate(known_video=PIXELS[:, :3])
    with pytest.raises(UserError, match="takes no video: drop video"):
        runtime.generate(**opening, video=PIXELS)


@pytest.mark.parametrize(
    "task, given",
    [("video_to_audio", {"video": PIXELS}), pytest.param("audio_to_video", {"audio": SOUNDS}, marks=pytest.mark.slow)],
)
def test_a_condition_is_tokenized_and_leads_the_output(generator, tmp_path, task, given):
    spec = ExportSpec(task=task, batch=2)
    runtime = Runtime.load(exporting.export(generator, spec, tmp_path / "export"))
    result = runtime.generate(**given)
    condition = generator.encode_condition(task, given)
    tokens = generator.tokens(task, 3, condition=condition, batch=2)
    np.testing.assert_array_equal(result.tokens, tokens)
    drawn = generator.detokenize(task, tokens)
    if task == "audio_to_video":
        assert result.audio is None
        np.testing.assert_array_equal(result.video, drawn.video)
    else:
        assert result.video is None
        np.testing.assert_allclose(result.audio.astype(int), drawn.audio, atol=ROUNDING)
    with pytest.raises(UserError, match=f"takes {next(iter(given))} as its condition: pass"):
        runtime.generate()


def test_what_is_not_given_of_a_clip_is_hidden_in_an_export_too(generator, tmp_path):
    spec = ExportSpec(task="inpainting", batch=2)
    runtime = Runtime.load(exporting.export(generator, spec, tmp_path / "export"))
    video, cells = generator.make_condition("inpainting", PIXELS, region="central")
    result = runtime.generate(video=video, cells=cells)
    condition = generator.encode_condition("inpainting", {"video": PIXELS}, region="central")
    assert (condition["video_in"] < 0).any()
    tokens = generator.tokens("inpainting", len(PIXELS), condition=condition, batch=2)
    np.testing.assert_array_equal(result.tokens, tokens)
    assert (runtime.generate(video=video).tokens != tokens).any()
    with pytest.raises(UserError, match=r"cells are bool\[3, 1\], expected bool\[3, 3, 4, 4\]"):
        runtime.generate(video=video, cells=np.ones((3, 1), bool))


def test_sound_without_an_audio_tokenizer_is_refused(generator):
    spec = generator.resolved.spec
    silent = Resolved(spec.replace(audio_tokenizer=spec.audio_tokenizer.replace(path="")))
    with pytest.raises(UserError, match="text_to_audio needs sound"):
        exporting.check(silent, ExportSpec(task="text_to_audio"))
