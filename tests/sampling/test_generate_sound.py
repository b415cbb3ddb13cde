"""Tasks with sound, from files to files: what is given stays, what is drawn is heard."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest
import tiny
from test_generate import HashedStates

from poet import media
from poet.media.sound import read_sound
from poet.sampling import command
from poet.sampling.generate import Generator
from poet.sampling.requests import Request, check_request
from poet.spec import SampleSpec, UserError
from poet.tasks.registry import get_task
from poet.tasks.resolved import Resolved

E = tiny.WITH_SOUND
RUN = Resolved(E)
SAMPLES, FRAMES, LEVELS = 5000, 15, 2
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (2, 5, 16, 16, 3)).astype(np.uint8)
SOUNDS = (6000 * RNG.normal(size=(2, SAMPLES))).clip(-32768, 32767).astype(np.int16)
# Whole frames of 320 samples in 1 and 3 video frames of 1,000 samples each.
OPENING = {1: 3, 3: 9}


@pytest.fixture(scope="module")
def generator() -> Generator:
    return tiny.generator(SampleSpec(temperature=2.0, seed=1), sound=True, text=HashedStates())


def levels(codes_NxM: np.ndarray) -> np.ndarray:
    return codes_NxM.reshape(len(codes_NxM), LEVELS, FRAMES)


@pytest.mark.parametrize("conditioning_frames", [1, 3])
def test_a_continuation_opens_with_the_given_frames_and_their_sound(generator, conditioning_frames):
    """In every level the first codes are those of the whole clip, for the time of the frames."""
    task, frames = "audio_video_continuation", OPENING[conditioning_frames]
    opening = SOUNDS[:, : conditioning_frames * 1000]
    latents = 1 + (conditioning_frames - 1) // 2
    known = generator.encode_conditioning(task, latents, {"video": PIXELS[:, :conditioning_frames], "audio": opening})
    tokens = generator.tokens(task, 2, known=known, latents=latents, batch=2)
    streams = RUN.layout(get_task(task)).parse(tokens)
    whole = tiny.audio_tokenizer().encode(SOUNDS, levels=LEVELS)
    np.testing.assert_array_equal(levels(streams["audio"])[:, :, :frames], whole[:, :, :frames])
    pixels = tiny.video_tokenizer().encode(PIXELS).reshape(2, -1)
    count = 16 * latents
    np.testing.assert_array_equal(streams["video"][:, :count], pixels[:, :count])
    assert np.any(levels(streams["audio"])[:, :, frames:] != whole[:, :, frames:])


@pytest.mark.parametrize("task", ["video_to_audio", "audio_to_video"])
def test_the_condition_stands_in_the_prefix_and_decides_the_output(generator, task):
    media = {"video_to_audio": {"video": PIXELS}, "audio_to_video": {"audio": SOUNDS}}[task]
    condition = generator.encode_condition(task, media)
    (stream,) = condition
    tokens = generator.tokens(task, 2, condition=condition, batch=2)
    streams = RUN.layout(get_task(task)).parse(tokens)
    np.testing.assert_array_equal(streams[stream], condition[stream])
    swapped = {stream: condition[stream][::-1]}
    other = RUN.layout(get_task(task)).parse(generator.tokens(task, 2, condition=swapped, batch=2))
    output = RUN.layout(get_task(task)).output_streams[0]
    assert np.any(other[output][0] != streams[output][0]), "the same noise, another condition"
    drawn = generator.generate(task, media=media, batch=2)
    if task == "audio_to_video":
        assert drawn.audio is None and drawn.video.shape == PIXELS.shape
        return
    assert drawn.video is None and drawn.audio.dtype == np.int16
    expected = tiny.audio_tokenizer().decode(levels(streams["audio"]), SAMPLES)
    np.testing.assert_array_equal(drawn.audio, expected)


@pytest.mark.parametrize(
    "task, prompts, conditioning_frames, clips, message",
    [
        ("video_to_audio", [], 0, 0, "takes video as its condition: give a file"),
        ("audio_to_video", [], 0, 0, "takes sound as its condition: give a file"),
        ("video_to_audio", [], 1, 1, "takes no conditioning frames"),
        ("audio_video_continuation", [], 0, 1, "takes 1 or 3 conditioning frames"),
        ("text_to_audio", [], 0, 0, "needs a text"),
        ("audio_to_video", ["rain"], 0, 1, "takes no text.*text_to_audio"),
    ],
)
def test_requests_that_do_not_fit_are_refused(task, prompts, conditioning_frames, clips, message):
    with pytest.raises(UserError, match=message):
        check_request(RUN, get_task(task), prompts, conditioning_frames, clips)
    silent = E.replace(audio_tokenizer=E.audio_tokenizer.replace(path=""))
    with pytest.raises(UserError, match=f"{task} needs sound.*set AUDIO_TOKENIZER.path"):
        check_request(Resolved(silent), get_task(task), prompts, conditioning_frames, clips)


def test_conditions_of_a_wrong_shape_or_kind_are_refused(generator):
    with pytest.raises(UserError, match="takes audio as its condition"):
        generator.generate("audio_to_video", media={"video": PIXELS})
    with pytest.raises(UserError, match="at least 4800"):
        generator.generate("audio_to_video", media={"audio": SOUNDS[:, :4000]})
    with pytest.raises(UserError, match="at least 5, 16, 16, 3"):
        generator.generate("video_to_audio", media={"video": PIXELS[:, :3]})
    with pytest.raises(UserError, match="video: 2, audio: 1"):
        generator.generate(
            "audio_video_continuation", media={"video": PIXELS, "audio": SOUNDS[:1]}, conditioning_frames=1
        )


# --------------------------------------------------------------------------------------- files


@pytest.fixture
def loaded(generator, monkeypatch):
    monkeypatch.setattr(Generator, "from_checkpoint", lambda *_: generator)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A clip with sound, the same without, and its sound alone at twice the rate in stereo."""
    folder = tmp_path_factory.mktemp("given")
    video = np.repeat(PIXELS[0, :, :1, :1], 16, axis=1).repeat(16, axis=2)
    tone = (9000 * np.sin(2 * np.pi * 500 * np.arange(SAMPLES) / 8000)).astype(np.int16)
    media.write_mp4(folder / "clip.mp4", video, 8.0, tone, 8000)
    media.write_mp4(folder / "mute.mp4", video, 8.0)
    media.write_wav(folder / "tone.wav", np.repeat(tone, 2), 16_000)
    return folder


def ask(files, tmp_path, task, clip="", **changes):
    clips = [str(files / clip)] if clip else []
    return command.run(Request(task=task, clip=clips, **changes), RUN, tiny.RUN, tmp_path)


def tracks(path) -> list[str]:
    with av.open(str(path)) as container:
        return sorted(f"{s.type} {s.codec_context.name}" for s in container.streams)


CASES = [
    ("video_to_audio", "clip.mp4", ()),
    ("video_to_audio", "mute.mp4", ()),
    ("audio_to_video", "tone.wav", ()),
    ("audio_to_video", "clip.mp4", ()),
    ("text_to_video_with_audio", "", ("a door",)),
    ("audio_video_continuation", "clip.mp4", ()),
    ("text_to_audio", "", ("a door",)),
]


@pytest.mark.parametrize("task, clip, prompt", CASES)
def test_every_task_writes_what_it_draws(task, clip, prompt, files, tmp_path, loaded):
    """Sound goes into the mp4 and beside it; what was given is shown with what was drawn for it."""
    written = ask(files, tmp_path, task, clip, prompt=prompt, num=2)
    names = [path.name for path in written]
    kinds = (".wav",) if task == "text_to_audio" else (".mp4", ".gif", ".png", ".wav")
    assert names == [f"{row:03d}{kind}" for row in (0, 1) for kind in kinds] + ["generation.json"]
    record = json.loads((tmp_path / "generation.json").read_text())
    assert record["sample_rate_hz"] == 8000 and record["task"] == task
    wav = read_sound(tmp_path / "000.wav", 8000).samples
    assert wav.shape == (SAMPLES,) and wav.any()
    if task == "audio_to_video":
        given = read_sound(files / clip, 8000).samples[:SAMPLES]
        np.testing.assert_allclose(wav[: len(given)], given, atol=1)
    else:
        other = read_sound(tmp_path / "001.wav", 8000).samples
        assert np.any(wav != other), "each sample has its own noise"
    if task == "text_to_audio":
        return
    assert tracks(tmp_path / "000.mp4") == ["audio aac", "video h264"]
    shown = media.read_clip(tmp_path / "000.mp4", E.clip)
    assert shown.video.shape == (5, 16, 16, 3)
    if task == "video_to_audio":
        given = media.read_clip(files / clip, E.clip).video
        np.testing.assert_array_equal(shown.video, given, "the frames of the file itself")


def test_files_that_lack_what_a_task_needs_are_refused_first(files, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Generator, "from_checkpoint", refuse)
    cases = {
        ("audio_to_video", "mute.mp4"): "mute.mp4: no audio stream",
        ("audio_video_continuation", "mute.mp4"): "mute.mp4: no sound to continue",
        ("video_to_audio", "tone.wav"): "tone.wav: no video stream",
        ("audio_to_video", "gone.wav"): "gone.wav: no such file",
    }
    for (task, clip), message in cases.items():
        with pytest.raises(UserError, match=message):
            ask(files, tmp_path, task, clip)
